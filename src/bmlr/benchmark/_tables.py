"""Tables of a comparison as Markdown, LaTeX and CSV; the best bold, the second underlined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bmlr._files import atomic_write_text
from bmlr.benchmark._comparison import Comparison, MethodSummary
from bmlr.benchmark.statistics import Estimate

Mark = Literal["", "best", "second"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is shown.
        mark: best, second or "".
    """

    text: str
    mark: Mark = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for people to read.

    Attributes:
        heads: Heads of the columns.
        rows: Its rows.
        notes: Sentences below it.
        title: What it shows.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    title: str = ""

    def markdown(self) -> str:
        """The table in GitHub's Markdown.

        Example:
            >>> print(Table(["method", "fused (%)"], [[Cell("Joint"), Cell("71.0", "best")]], ["Note."]).markdown())
            | method | fused (%) |
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
            >>> print(Table(["method", "ratio"], [[Cell("Only-TPO"), Cell("1.2 ± 0.1", "best")]]).latex())
            \begin{tabular}{lr}
            \toprule
            method & ratio \\
            \midrule
            Only-TPO & \textbf{1.2 $\pm$ 0.1} \\
            \bottomrule
            \end{tabular}
        """
        around = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
        lines = [f"% {line}" for line in (self.title, *self.notes) if line]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(self.heads) - 1)}}}", r"\toprule"]
        lines += [rf"{' & '.join(map(_escape, self.heads))} \\", r"\midrule"]
        lines += [
            rf"{' & '.join(around[cell.mark].format(_escape(cell.text)) for cell in row)} \\" for row in self.rows
        ]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def comparison_table(comparison: Comparison, *, precision: int = 1) -> Table:
    """A comparison as a table: mean ± sample standard deviation over seeds, in per cent.

    Args:
        comparison: The comparison.
        precision: Decimals of percentages.
    """
    methods = comparison.methods
    columns: list[tuple[str, list[Cell]]] = [("method", [Cell(method.title) for method in methods])]

    def add(head: str, read: Callable[[MethodSummary], Estimate], factor: float = 100, digits: int = precision) -> None:
        estimates = [read(method) for method in methods]
        if any(one.runs for one in estimates):
            cells = [
                Cell("failed" if not method.seeds and method.failed else spread(one, factor, digits))
                for method, one in zip(methods, estimates, strict=True)
            ]
            columns.append((head, cells))

    undefined = Estimate(math.nan, None, 0)
    add("fused (%)", lambda method: method.accuracy)
    columns[-1] = ("fused (%)", mark_best(columns[-1][1], [method.accuracy.mean for method in methods], precision))
    for name in comparison.modalities:
        add(f"{name} (%)", lambda method, name=name: method.unimodal.get(name, undefined))  # type: ignore[misc]
        values = [method.unimodal.get(name, undefined).mean for method in methods]
        columns[-1] = (columns[-1][0], mark_best(columns[-1][1], values, precision))
    for pair in comparison.pairs:
        add(f"ratio {pair}", lambda method, pair=pair: method.ratio.get(pair, undefined), 1, 2)  # type: ignore[misc]
    if comparison.baseline is not None:
        head = f"difference to {_title_of(comparison)} (95 %)"
        columns.append((head, [Cell(_difference_text(method, comparison.baseline, precision)) for method in methods]))
    add("last epoch (%)", lambda method: method.last_epoch)
    add("best on test (%)", lambda method: method.best_on_test)
    columns.append(("runs", [Cell(_runs_text(method)) for method in methods]))
    columns.append(("data passes", [Cell(_plain(method.data_passes.mean, "g")) for method in methods]))
    columns.append(("minutes", [Cell(_plain(method.minutes.mean, ".1f")) for method in methods]))
    heads = [head for head, _ in columns]
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Table(heads, rows, _notes(comparison), f"{comparison.data}, {comparison.protocol} protocol")


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """A comparison as numbers, one row per method; accuracies as shares of one."""
    rows = []
    for method in comparison.methods:
        row: dict[str, Any] = {"method": method.label, "title": method.title}
        row |= {"data": comparison.data, "protocol": comparison.protocol, "samples": comparison.samples}
        row |= _numbers("accuracy", method.accuracy)
        for name in comparison.modalities:
            if name in method.unimodal:
                row |= _numbers(f"accuracy_{name}", method.unimodal[name])
        for pair in comparison.pairs:
            if pair in method.ratio:
                row |= _numbers(f"ratio_{pair}", method.ratio[pair])
        if method.last_epoch.runs:
            row |= _numbers("last_epoch_accuracy", method.last_epoch)
            row |= _numbers("best_on_test_accuracy", method.best_on_test)
        if comparison.baseline is not None:
            difference = method.difference
            row |= {
                "baseline": comparison.baseline,
                "difference": None if difference is None else difference.mean,
                "difference_low": None if difference is None else difference.low,
                "difference_high": None if difference is None else difference.high,
                "resampled": "" if difference is None else difference.over,
            }
        row |= {"majority_rate": comparison.majority_rate, "runs": len(method.seeds), "failed": method.failed}
        row |= {"seeds": " ".join(map(str, method.seeds)), "epochs": method.epochs}
        row |= {"data_passes": method.data_passes.mean, "minutes": method.minutes.mean}
        rows.append(row)
    return pd.DataFrame(rows)


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


def spread(one: Estimate, factor: float = 100, digits: int = 1) -> str:
    """Mean ± sample standard deviation; a dash where nothing is defined.

    Example:
        >>> spread(Estimate(0.712, 0.004, 3)), spread(Estimate(0.5, None, 1))
        ('71.2 ± 0.4', '50.0')
    """
    if not one.runs:
        return "–"
    text = f"{factor * one.mean:.{digits}f}"
    return text if one.std is None else f"{text} ± {factor * one.std:.{digits}f}"


def mark_best(cells: Sequence[Cell], values: Sequence[float], digits: int = 1, factor: float = 100) -> list[Cell]:
    """Mark the largest and the second largest value; values that look the same rank the same.

    Example:
        >>> [cell.mark for cell in mark_best([Cell("a"), Cell("b"), Cell("c")], [0.7, 0.9, 0.8])]
        ['', 'best', 'second']
    """
    shown = [None if math.isnan(value) else round(factor * value, digits) for value in values]
    ranks = sorted({value for value in shown if value is not None}, reverse=True)
    if len(ranks) < 2:
        return list(cells)
    alone = shown.count(ranks[0]) == 1  # several that share the first place leave no second
    marks: dict[float, Mark] = {ranks[0]: "best"}
    if alone:
        marks[ranks[1]] = "second"
    return [
        Cell(cell.text, "" if value is None else marks.get(value, "")) for cell, value in zip(cells, shown, strict=True)
    ]


def _numbers(name: str, one: Estimate) -> dict[str, float | None]:
    return {f"{name}_mean": one.mean, f"{name}_std": one.std}


def _plain(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _runs_text(method: MethodSummary) -> str:
    extra = [
        f"{count} {what}" for count, what in ((method.failed, "failed"), (method.unfinished, "unfinished")) if count
    ]
    return f"{len(method.seeds)} ({', '.join(extra)})" if extra else str(len(method.seeds))


def _difference_text(method: MethodSummary, baseline: str, digits: int) -> str:
    difference = method.difference
    if method.label == baseline:
        return "0"
    return "–" if difference is None else difference.text(digits)


def _title_of(comparison: Comparison) -> str:
    return next(method.title for method in comparison.methods if method.label == comparison.baseline)


def _notes(comparison: Comparison) -> list[str]:
    seeds = max(len(method.seeds) for method in comparison.methods)
    over = dict.fromkeys(m.difference.over for m in comparison.methods if m.difference and m.difference.low is not None)
    where = f"Test part of {comparison.data}, {comparison.samples} samples, {comparison.protocol} protocol"
    notes = [
        f"Majority rate {100 * comparison.majority_rate:.1f} %.",
        f"{where}, epoch selected on validation.",
        f"Mean ± sample standard deviation over {seeds} seeds." if seeds > 1 else "One seed.",
    ]
    if over:
        notes.append(f"Interval of the difference: paired bootstrap over {' or '.join(over)}, percentile method.")
    if any(method.best_on_test.runs for method in comparison.methods):
        notes.append("Best on test is selected on the test split, hence optimistic.")
    return [*notes, *comparison.notes]


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "α": r"$\alpha$",
    "β": r"$\beta$", "ε": r"$\epsilon$", "→": r"$\rightarrow$",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
