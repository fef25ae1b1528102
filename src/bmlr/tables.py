"""Tables as Markdown, LaTeX and CSV.

The best number is bold, the second underlined.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bmlr._files import atomic_write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Cell",
    "Mark",
    "Table",
    "format_mean",
    "format_percent",
    "join_names",
    "leading_number",
    "list_first",
    "mark_best",
    "write_table",
]

Mark = Literal["", "best", "second"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is shown.
        mark: best, second or "".
        value: What a reader sorts by; None goes last.
        note: Remark on the number, or "".
    """

    text: str
    mark: Mark = ""
    value: float | str | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; its first column holds names, the others numbers.

    Attributes:
        heads: Heads of the columns.
        rows: Rows of cells.
        notes: Sentences below it.
        title: What it shows.
        head_notes: Explanations of heads, by head.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    title: str = ""
    head_notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_columns(
        cls,
        columns: Sequence[tuple[str, Sequence[Cell]]],
        notes: Sequence[str] = (),
        title: str = "",
        head_notes: Mapping[str, str] | None = None,
    ) -> Table:
        """A table from its columns, each a head with its cells.

        Example:
            >>> Table.from_columns([("method", [Cell("Joint")]), ("multimodal (%)", [Cell("71.0")])]).heads
            ['method', 'multimodal (%)']
        """
        rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
        return cls([head for head, _ in columns], rows, notes, title, head_notes or {})

    def markdown(self) -> str:
        """The table in GitHub's Markdown.

        Example:
            >>> print(Table(["method", "audio (%)"], [[Cell("Joint"), Cell("71.0", "best")]], ["Note."]).markdown())
            | method | audio (%) |
            | --- | ---: |
            | Joint | **71.0** |
            <BLANKLINE>
            Note.
        """
        around = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
        lines = [f"**{self.title}**", ""] if self.title else []
        lines.append(f"| {' | '.join(head.replace('|', chr(92) + '|') for head in self.heads)} |")
        lines.append(f"| {' | '.join(['---', *['---:'] * (len(self.heads) - 1)])} |")
        for row in self.rows:
            cells = [around[cell.mark].format(cell.text.replace("|", "\\|")) for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, *(["", " ".join(self.notes)] if self.notes else [])])

    def latex(self) -> str:
        r"""The table in LaTeX, for the package booktabs.

        Example:
            >>> print(Table(["method", "ratio"], [[Cell("OnlyTPO"), Cell("1.2 ± 0.1", "best")]]).latex())
            \begin{tabular}{lr}
            \toprule
            method & ratio \\
            \midrule
            OnlyTPO & \textbf{1.2 $\pm$ 0.1} \\
            \bottomrule
            \end{tabular}
        """
        around = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
        lines = [f"% {line}" for line in (self.title, *self.notes) if line]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(self.heads) - 1)}}}", r"\toprule"]
        lines += [rf"{' & '.join(map(_escape_latex, self.heads))} \\", r"\midrule"]
        lines += [
            rf"{' & '.join(around[cell.mark].format(_escape_latex(cell.text)) for cell in row)} \\" for row in self.rows
        ]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def format_mean(mean: float, std: float | None = None, *, factor: float = 100, digits: int = 1) -> str:
    """Mean ± standard deviation; a dash for NaN.

    Args:
        mean: Mean.
        std: Standard deviation; None leaves it out.
        factor: Factor of both, 100 for per cent.
        digits: Decimals.

    Example:
        >>> format_mean(0.712, 0.004), format_mean(0.5), format_mean(float("nan"))
        ('71.2 ± 0.4', '50.0', '–')
    """
    if math.isnan(mean):
        return "–"
    text = f"{factor * mean:.{digits}f}"
    return text if std is None else f"{text} ± {factor * std:.{digits}f}"


def format_percent(fraction: float | None, interval: tuple[float, float] | None = None, *, signed: bool = False) -> str:
    """A fraction in per cent with one decimal; a dash for None and NaN.

    It is the form of accuracies for people. Files for programs hold fractions.

    Args:
        fraction: The fraction.
        interval: Ends of its interval.
        signed: Write the sign of positive numbers too, as of differences.

    Example:
        >>> format_percent(0.8889), format_percent(1.0, (0.61, 1.0)), format_percent(0.05, signed=True)
        ('88.9 %', '100.0 % [61.0, 100.0]', '+5.0 %')
    """
    if fraction is None or math.isnan(fraction):
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * fraction:{sign}.1f} %"
    return text if interval is None else f"{text} [{', '.join(f'{100 * end:{sign}.1f}' for end in interval)}]"


def leading_number(text: str) -> float | None:
    """The number a text begins with, or None.

    Example:
        >>> leading_number("71.2 ± 0.4"), leading_number("+1.5 [0.2, 2.8]"), leading_number("failed")
        (71.2, 1.5, None)
    """
    match = re.match(r"[+-]?[0-9]+(\.[0-9]+)?", text)
    return float(match[0]) if match else None


def join_names(names: Sequence[str]) -> str:
    """Names as in a sentence.

    Example:
        >>> join_names(["audio"]), join_names(["audio", "video", "text"])
        ('audio', 'audio, video and text')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def list_first(texts: Sequence[str], most: int = 5) -> str:
    """The first texts of a list, and how many more there are.

    Example:
        >>> list_first(["Joint", "BMLR"]), list_first(["Joint", "BMLR", "DGL", "OPM"], 2)
        ('Joint, BMLR', 'Joint, BMLR and 2 more')
    """
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def mark_best(cells: Sequence[Cell], goodness: Callable[[float], float] = float) -> list[Cell]:
    """Mark the best and the second number.

    Numbers that look the same rank the same. Several best numbers leave no second.

    Args:
        cells: Cells of a column.
        goodness: How good a number is; by default the larger, the better.

    Example:
        >>> [cell.mark for cell in mark_best([Cell("0.7"), Cell("0.9 ± 0.1"), Cell("–"), Cell("0.8")])]
        ['', 'best', '', 'second']
    """
    numbers = [leading_number(cell.text) for cell in cells]
    scores = [None if number is None else round(goodness(number), 9) for number in numbers]
    ranks = sorted({score for score in scores if score is not None}, reverse=True)
    if len(ranks) < 2:
        return list(cells)
    marks: dict[float, Mark] = {ranks[0]: "best"}
    if scores.count(ranks[0]) == 1:
        marks[ranks[1]] = "second"
    return [
        cell if score is None else dataclasses.replace(cell, mark=marks.get(score, ""))
        for cell, score in zip(cells, scores, strict=True)
    ]


def write_table(table: Table, frame: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a table as ``name.md`` and ``name.tex`` and its numbers as ``name.csv``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"md": table.markdown() + "\n", "tex": table.latex() + "\n", "csv": frame.to_csv(index=False)}
    files = {folder / f"{name}.{ending}": text for ending, text in texts.items()}
    for path, text in files.items():
        atomic_write_text(path, text)
    return list(files)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "α": r"$\alpha$",
    "β": r"$\beta$", "ε": r"$\epsilon$", "→": r"$\rightarrow$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def format_duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> [format_duration(seconds) for seconds in (3.2, 250, 10_000, 400_000)]
        ['3 s', '4 min', '2.8 h', '4.6 days']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def format_size(number: float) -> str:
    """A number of bytes in words.

    Example:
        >>> format_size(2e6), format_size(4.5e9)
        ('2.0 MB', '4.5 GB')
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words.

    Args:
        number: The number.
        noun: The word for one of them, and what else differs for one.
        plural: The same for several; None puts an s at the end.

    Example:
        >>> format_count(1, "run"), format_count(3, "run"), format_count(2, "class has", "classes have")
        ('1 run', '3 runs', '2 classes have')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
