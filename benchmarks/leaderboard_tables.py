"""Tables and figures of a campaign's complete data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmlr import figures
from bmlr._files import atomic_write_text, json_text
from bmlr.benchmark import Comparison, compare_runs, comparison_table
from bmlr.benchmark.contents import Contents, FigureFile, write_contents
from bmlr.benchmark.drawing import save_figure
from bmlr.benchmark.overall import overall_table, overall_test
from bmlr.benchmark.statistics import Estimate, estimate
from bmlr.diagnosis import measure_run_robustness
from bmlr.runs import RunRecord
from bmlr.tables import Cell, Table, mark_best
from bmlr.tasks import metric_form

if TYPE_CHECKING:
    from leaderboard import Campaign, DataSet

MISSING = "missing.json"  # in the directory of a run: what its test score loses without each modality
_LOST = 3  # modalities, up to which each has a column of what is lost without it


def write_tables(campaign: Campaign) -> list[Path]:
    """Write the tables of every complete data set, and of all together; the files."""
    complete = [data_set for data_set in campaign.sets if campaign.is_complete(data_set)]
    missing = [data_set.name for data_set in campaign.sets if data_set not in complete]
    note = [f"Not complete, and left out: {', '.join(missing)}."] if missing else []
    items: list[Table | FigureFile] = []
    comparisons: dict[str, Comparison] = {}
    for data_set in complete:
        records = campaign.records(data_set)
        comparisons[data_set.name] = comparison = compare_runs(
            [record for runs in records.values() for record in runs], baseline=campaign.content["baseline"], force=True
        )
        tables = {
            "table": _main_table(comparison, data_set),
            "more": _second_table(comparison, data_set, records, campaign),
        }
        for name, table in tables.items():
            path = campaign.folder(data_set) / f"{name}.md"
            atomic_write_text(path, table.markdown() + "\n")
            atomic_write_text(path.with_suffix(".tex"), table.latex() + "\n")
        items += tables.values()
    if not complete:
        return [write_contents(Contents("Leaderboard", [], note), campaign.out)]
    ranked = {
        entry.name: comparisons[entry.name]
        for entry in complete
        if entry.entry.get("ranked", True) and not entry.levels
    }
    files = []
    if ranked:
        table = overall_table(ranked)
        files.append(campaign.out / "overall.md")
        atomic_write_text(files[0], table.markdown() + "\n")
        atomic_write_text(files[0].with_suffix(".tex"), table.latex() + "\n")
        items.insert(0, table)
        test = overall_test(ranked)
        axes = figures.plot_ranks(test.ranks, test.critical_difference)
        files += save_figure(axes.get_figure(), campaign.out, "ranks")
        items.insert(1, FigureFile(campaign.out / "ranks.png", "Mean ranks over data sets; the lower, the better."))
    atomic_write_text(campaign.out / "status.md", " ".join(note or ["All data sets are complete."]) + "\n")
    return [*files, write_contents(Contents("Leaderboard", items, note), campaign.out)]


def _columns(table: Table, keep: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Columns whose heads begin with one of some words."""
    return [
        (head, [row[position] for row in table.rows])
        for position, head in enumerate(table.heads)
        if head.startswith(tuple(keep))
    ]


def _main_table(comparison: Comparison, data_set: DataSet) -> Table:
    table, form = comparison_table(comparison), metric_form(comparison.metric)
    heads = [form.head(name) for name in ("fused", *comparison.modalities)]
    notes = [note for note in table.notes if not note.startswith("The methods differ in")]
    columns = _columns(table, ["method", *heads, "difference to", "over the"])
    return Table.from_columns(columns, notes, f"{data_set.name}: {data_set.entry.get('about', '')}")


def _second_table(
    comparison: Comparison, data_set: DataSet, records: Mapping[str, Sequence[RunRecord]], campaign: Campaign
) -> Table:
    """Calibration, what is lost without a modality, cost, and the values that were found."""
    names = campaign.content.get("metrics", [])
    table = comparison_table(comparison, metrics=names)
    columns = _columns(table, ["method", *(metric_form(name).head("fused") for name in names), "data passes"])
    primary = metric_form(comparison.metric).head("fused")
    columns = [column for column in columns if column[0] != primary]
    lost = {label: _lost(runs, comparison.modalities) for label, runs in records.items()}
    shown = {f"lost without {name}": [of_row.get(name) for of_row in lost.values()] for name in comparison.modalities}
    if len(comparison.modalities) > _LOST:
        worst = [max((value.mean for value in of_row.values()), default=math.nan) for of_row in lost.values()]
        mean = [estimate(value.mean for value in of_row.values()) for of_row in lost.values()]
        shown = {"lost without one, mean": list(mean), "at worst": [Estimate(value, None, 1) for value in worst]}
    for head, values in shown.items():
        cells = [Cell("–" if value is None or not value.runs else f"{100 * value.mean:.1f}") for value in values]
        columns.append((head, mark_best(cells, lambda number: -number)))
    minutes = {method.label: method.minutes.mean for method in comparison.methods}
    base = minutes.get(campaign.content["baseline"], math.nan)
    times = [Cell("–" if not minute else f"{minute / base:.1f}") for minute in minutes.values()]
    columns.append((f"time, × {campaign.content['baseline']}", times))
    tuned = campaign.tuned_values(data_set)
    texts = [", ".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in tuned[label].items()) for label in records]
    columns.append(("tuned", [Cell(text or "–") for text in texts]))
    notes = [
        "Lost: points of the fused test score when that modality is absent from every test sample, mean over seeds.",
        "Time of a run over that of the baseline; the runs that a row starts from are not counted.",
    ]
    return Table.from_columns(columns, notes, f"{data_set.name}: calibration, missing modalities and cost")


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _lost(runs: Sequence[RunRecord], modalities: Sequence[str]) -> dict[str, Estimate]:
    """What the fused test score loses without each modality, over seeds; kept in the directories of the runs."""
    measured = [_lost_of_run(run.directory, modalities) for run in runs if run.result is not None]
    return {name: estimate(of_run[name] for of_run in measured) for name in modalities} if measured else {}


def _lost_of_run(directory: Path, modalities: Sequence[str]) -> dict[str, float]:
    path = directory / MISSING
    if not path.is_file():
        robustness = measure_run_robustness(directory, {name: [1.0] for name in modalities})
        lost = {name: robustness.sweeps[f"missing {name}"][0][1].lost.value for name in modalities}
        atomic_write_text(path, json_text(lost) + "\n")
    return dict(json.loads(path.read_text()))
