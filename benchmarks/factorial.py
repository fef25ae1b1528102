"""Tables, figure and findings of a factorial study, from the files that ``leaderboard.py`` keeps of its cells.

    python benchmarks/factorial.py benchmarks/factorial.yaml --keep benchmarks/factorial --out results/factorial

A cell is a set of the file with factors, under one combination of their levels. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from leaderboard import expand
from leaderboard_kept import Kept, read_folder

from bmlr._files import atomic_write_text
from bmlr.benchmark.drawing import save_figure
from bmlr.benchmark.statistics import Difference
from bmlr.figures.style import COLOURS, MARKERS, STYLES, add_legend, plain_text, tidy
from bmlr.tables import Cell, Mark, Table, format_mean, join_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = "95 % interval"
_NAMED = 5  # cells that a sentence names at most; the tables mark them all


@dataclasses.dataclass(frozen=True)
class Panel:
    """Cells that differ in one factor.

    Attributes:
        factor: The factor.
        title: Levels of the other factors of its set.
        cells: Names of the cells by level, in increasing order.
    """

    factor: str
    title: str
    cells: Mapping[float, str]


class Study:
    """The cells of a file of which results are kept.

    Args:
        content: Content of the file.
        folder: Folder of the files kept.

    Raises:
        SystemExit: If no cell is complete.
    """

    def __init__(self, content: Mapping[str, Any], folder: Path) -> None:
        self.content = content
        self.sets = {name: list(expand(name, entry)) for name, entry in content["sets"].items()}
        self.names = [cell.name for cells in self.sets.values() for cell in cells]
        self.kept = {kept.name: kept for kept in read_folder(folder, self.names)}
        if not self.kept:
            raise SystemExit(
                f"No cell is kept in {folder}: make some by benchmarks/leaderboard.py, with --keep {folder}."
            )
        self.baseline = str(content["baseline"])

    def title(self, levels: Mapping[str, str]) -> str:
        """Levels of a cell in words."""
        names = self.content["factor_names"]
        return ", ".join(f"{names[factor]} {level}" for factor, level in levels.items())

    def differences(self, to: str) -> dict[str, dict[str, Difference]]:
        """Differences to a row, by cell and row."""
        return {name: kept.differences(to) for name, kept in self.kept.items()}

    def panels(self) -> Iterator[Panel]:
        """Panels of the figure: one per level of a second factor, with a shared cell where the file names one."""
        for name, entry in self.content["sets"].items():
            first, *others = entry["factors"]
            groups: dict[str, dict[float, str]] = {}
            for cell in self.sets[name]:
                if cell.name in self.kept:
                    title = self.title({factor: cell.levels[factor] for factor in others})
                    groups.setdefault(title, {})[float(cell.levels[first])] = cell.name
            shared = entry.get("shared")
            for title, cells in groups.items():
                if shared and shared["cell"] in self.kept:
                    cells[float(shared["level"])] = shared["cell"]
                yield Panel(first, title, dict(sorted(cells.items())))


def score_table(study: Study) -> Table:
    """Scores of the rows in each cell, and of each modality under joint training."""
    columns = [("method", [Cell(label) for label in _labels(study)])]
    for kept in study.kept.values():
        methods = {method.label: method for method in kept.comparison.methods}
        cells = [Cell(format_mean(methods[label].fused.mean)) for label in _labels(study)]
        joint = methods["Joint"].unimodal
        cells += [Cell(format_mean(value.mean)) for value in joint.values()]
        columns.append((study.title(kept.content["levels"]), cells))
    modalities = next(iter(study.kept.values())).comparison.modalities
    columns[0] = ("method", [*columns[0][1], *(Cell(f"{name} in Joint") for name in modalities)])
    return Table.from_columns(columns)


def difference_table(study: Study, to: str) -> Table:
    """Differences of all rows to one, in each cell, with intervals."""
    marks: dict[int, Mark] = {1: "best", -1: "second", 0: ""}
    labels = [label for label in _labels(study) if label != to]
    columns = [("method", [Cell(label) for label in labels])]
    for name, found in study.differences(to).items():
        cells = [
            Cell(found[label].text(), marks[found[label].side]) if label in found else Cell("–") for label in labels
        ]
        columns.append((study.title(study.kept[name].content["levels"]), cells))
    notes = ["Bold: the interval lies above zero. Underlined: below."]
    return Table.from_columns(columns, notes)


def findings(study: Study) -> str:
    """Sentences on which intervals exclude zero, and on means over cells, computed from the numbers."""
    missing = [name for name in study.names if name not in study.kept]
    left_out = f" Left out, for they are not complete: {', '.join(f'`{name}`' for name in missing)}." if missing else ""
    lines = [f"* {len(study.kept)} of {len(study.names)} cells are complete.{left_out}"]
    for to in ("Joint", study.baseline):
        found = study.differences(to)
        labels = [label for label in _labels(study) if label != to and not label.startswith("Unimodal")]
        intervals = [found[name][label] for name in found for label in labels if label in found[name]]
        beyond = sum(difference.side != 0 for difference in intervals)
        lines.append(
            f"* To {to}: {beyond} of {len(intervals)} intervals exclude zero; about {0.05 * len(intervals):.0f} would "
            "by chance if nothing differed."
        )
        for label in labels:
            of_row = {name: found[name][label] for name in found if label in found[name]}
            mean = statistics.fmean(difference.mean for difference in of_row.values())
            ends = [difference.mean for difference in of_row.values()]
            parts = [_counted(study, of_row, sign, word) for sign, word in ((1, "above"), (-1, "below"))]
            lines.append(
                f"    * `{label}`: {'; '.join(parts)}. Mean {100 * mean:+.1f} points, from {100 * min(ends):+.1f} to "
                f"{100 * max(ends):+.1f}."
            )
    lines += _trends(study)
    return "\n".join(lines)


def _counted(study: Study, of_row: Mapping[str, Difference], sign: int, word: str) -> str:
    names = [study.title(study.kept[name].content["levels"]) for name, value in of_row.items() if value.side == sign]
    if not names:
        return f"{word} in none"
    which = f" ({'; '.join(names)})" if len(names) <= _NAMED and len(names) < len(of_row) else ""
    return f"{word} in {len(names)} of {len(of_row)}{which}"


def _trends(study: Study) -> list[str]:
    """How the mean gain of a figure's rows changes between the ends of each panel."""
    lines = []
    for row in study.content["figure"]:
        found = study.differences(row["to"])
        for panel in study.panels():
            if len(panel.cells) < 2:
                continue
            low, high, name = min(panel.cells), max(panel.cells), study.content["factor_names"][panel.factor]
            ends = [
                f"{label} {100 * found[panel.cells[low]][label].mean:+.1f} to "
                f"{100 * found[panel.cells[high]][label].mean:+.1f}"
                for label in row["rows"]
            ]
            where = f", {panel.title}" if panel.title else ""
            lines.append(f"* Points over {row['to']} from {name} {low:g} to {high:g}{where}: {join_names(ends)}.")
    return lines


def draw(study: Study) -> Any:
    """A row of panels per row of the file's ``figure``; a line per method, with its interval as a band."""
    from matplotlib import pyplot as plt

    panels, rows = list(study.panels()), study.content["figure"]
    figure, axes = plt.subplots(
        len(rows), len(panels), figsize=(2.5 * len(panels) + 0.6, 2.9 * len(rows)), sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    looks = _looks([label for row in rows for label in row["rows"]])
    for number, row in enumerate(rows):
        found = study.differences(row["to"])
        for ax, panel in zip(axes[number], panels, strict=True):
            _draw_panel(ax, panel, {label: {x: found[cell][label] for x, cell in panel.cells.items()}
                                    for label in row["rows"]}, looks)  # fmt: skip
            ax.axhline(0, color="black", linewidth=0.8)
            if number == 0:
                ax.set_title(panel.title or " ", fontsize=10)
            if number == len(rows) - 1:
                ax.set_xlabel(study.content["axes"][panel.factor])
        axes[number][0].set_ylabel(f"points of accuracy over {row['to']}")
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": 9}
        add_legend(axes[number][-1], last=(_BAND,), **beside)
    return figure


def _draw_panel(
    ax: Axes,
    panel: Panel,
    lines: Mapping[str, Mapping[float, Difference]],
    looks: Mapping[str, Mapping[str, Any]],
) -> None:
    single = len(panel.cells) == 1
    for number, (label, by_level) in enumerate(lines.items()):
        # Of one cell there is no band: intervals stand side by side.
        positions = [0.1 * number] if single else list(range(len(panel.cells)))
        values = list(by_level.values())
        lows, highs = (
            [100 * (math.nan if end is None else end) for end in ends]
            for ends in ([value.low for value in values], [value.high for value in values])
        )
        band: dict[str, Any] = {"alpha": 0.12, "linewidth": 0, "label": _BAND, "color": looks[label]["color"]}
        ax.fill_between(positions, lows, highs, **band)
        if single:
            ax.vlines(positions, lows, highs, colors=looks[label]["color"], linewidth=1)
        ax.plot(
            positions, [100 * value.mean for value in values], label=plain_text(label), markersize=4, **looks[label]
        )
    ticks = [0.05 * (len(lines) - 1)] if single else list(range(len(panel.cells)))
    ax.set_xticks(ticks, [f"{level:g}" for level in panel.cells])
    ax.margins(x=0.08)
    tidy(ax)


def _looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of each row, the same in all panels."""
    return {
        label: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": STYLES[number % len(STYLES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        for number, label in enumerate(dict.fromkeys(labels))
    }


def about(study: Study) -> str:
    """Size of the study, and what it was made with."""
    kept = next(iter(study.kept.values()))
    rows, seeds = kept.content["rows"], kept.content["seeds"]
    commits = sorted({of.content["commit"] for of in study.kept.values()})
    runs = sum(len(row["seeds"]) for of in study.kept.values() for row in of.content["rows"].values())
    versions = kept.content["versions"]
    return (
        f"{len(study.kept)} of {len(study.names)} cells, {len(rows)} rows and {len(seeds)} seeds: {runs} runs. "
        f"Made at {'commits' if len(commits) > 1 else 'commit'} {', '.join(commits)}, with PyTorch {versions['torch']} "
        f"on {versions['device']}."
    )


def _labels(study: Study) -> list[str]:
    kept: Kept = next(iter(study.kept.values()))
    return [method.label for method in kept.comparison.methods]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tables, findings and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="cells, methods and figure, as YAML")
    parser.add_argument("--keep", type=Path, required=True, help="folder of the files of complete cells")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    options = parser.parse_args(arguments)
    study = Study(yaml.safe_load(options.file.read_text(encoding="utf-8")), options.keep)
    texts: dict[str, Callable[[Study], str]] = {
        "about.md": about,
        "scores.md": lambda study: score_table(study).markdown(),
        "joint.md": lambda study: difference_table(study, "Joint").markdown(),
        "baseline.md": lambda study: difference_table(study, study.baseline).markdown(),
        "findings.md": findings,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, write in texts.items():
        atomic_write_text(options.out / name, write(study) + "\n")
        print(options.out / name)
    for path in save_figure(draw(study), options.out, "factorial"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
