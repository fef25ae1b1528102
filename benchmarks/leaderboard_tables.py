"""Tables and figures of the complete data sets of a campaign, from the files kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard_kept import LR, Kept

from bmlr import figures
from bmlr._files import atomic_write_text
from bmlr.benchmark import comparison_table
from bmlr.benchmark.contents import Contents, FigureFile, write_contents
from bmlr.benchmark.drawing import save_figure
from bmlr.benchmark.overall import overall_findings, overall_table, overall_test
from bmlr.benchmark.statistics import Estimate, estimate
from bmlr.tables import Cell, Table, list_first, mark_best
from bmlr.tasks import metric_form

if TYPE_CHECKING:
    from leaderboard import Campaign

_LOST = 3  # modalities, up to which each has a column of what is lost without it


def write_tables(complete: Sequence[Kept], campaign: Campaign, out: Path) -> list[Path]:
    """Write the tables of every complete data set, and of all together; the files."""
    missing = [entry.name for entry in campaign.sets if entry.name not in {kept.name for kept in complete}]
    note = [f"Not complete, and left out: {', '.join(missing)}."] if missing else []
    items: list[Table | FigureFile] = []
    for kept in complete:
        _write_text(out / kept.name / "about.md", about(kept))
        _write_text(out / kept.name / "findings.md", findings(kept))
        for name, table in (("table", main_table(kept)), ("more", second_table(kept))):
            _write(table, out / kept.name, name)
            items.append(table)
    if not complete:
        return [write_contents(Contents("Leaderboard", [], note), out)]
    files = []
    if ranked := {kept.name: kept.comparison for kept in complete if kept.ranked}:
        table = overall_table(ranked)
        files += _write(table, out, "overall")
        _write_text(out / "findings.md", "\n".join(f"* {line}" for line in overall_findings(ranked)))
        items.insert(0, table)
        test = overall_test(ranked)
        axes = figures.plot_ranks(test.ranks, test.critical_difference)
        files += save_figure(axes.get_figure(), out, "ranks")
        items.insert(1, FigureFile(out / "ranks.png", "Mean ranks over data sets; the lower, the better."))
    _write_text(out / "sets.txt", "\n".join(kept.name for kept in complete))
    _write_text(out / "status.md", " ".join(note or ["All data sets are complete."]))
    return [*files, write_contents(Contents("Leaderboard", items, note), out)]


def _write(table: Table, folder: Path, name: str) -> list[Path]:
    files = {folder / f"{name}.md": table.markdown(), folder / f"{name}.tex": table.latex()}
    for path, text in files.items():
        _write_text(path, text)
    return list(files)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text + "\n")


def about(kept: Kept) -> str:
    """How the runs of a data set were made, and by which command."""
    content, entry = kept.content, kept.entry
    trials, versions = content["tuning"].get("trials", 0), content["versions"]
    text = str(entry.get("about", kept.name))
    sizes = [
        f"{entry['trainer'][key]} {word}"
        for key, word in (("epochs", "epochs"), ("batch_size", "samples a batch"))
        if key in entry.get("trainer", {})
    ]
    made = (
        f"{text[:1].upper()}{text[1:]}. {len(content['rows'])} rows, {trials} trials and {len(content['seeds'])} seeds "
        f"each{''.join(f', {size}' for size in sizes)}. Made at commit {content['commit']}, with PyTorch "
        f"{versions['torch']} on {versions['device']}, by"
    )
    return "\n".join([made, "", "```sh", content["command"], "```"])


def findings(kept: Kept) -> str:
    """Which rows differ from the baseline and from the references by an interval that excludes zero."""
    comparison = kept.comparison
    form = metric_form(comparison.metric)
    methods = [method for method in comparison.methods if not method.label.startswith("Unimodal:")]
    lines = []
    for name in (str(comparison.baseline), *(f"the {reference}" for reference in comparison.references)):
        found = {
            method.label: method.difference if name == comparison.baseline else method.over.get(name[4:])
            for method in methods
        }
        better: list[tuple[float, str]] = []
        worse: list[tuple[float, str]] = []
        for label, difference in found.items():
            if difference is not None and difference.side:
                shown = (form.goodness(difference.mean), f"`{label}` ({difference.text(interval=False)})")
                (better if form.goodness(difference.side) > 0 else worse).append(shown)
        best = [text for _, text in sorted(better, reverse=True)]
        named = f": {list_first(best)}" if best else ""
        lines.append(f"* {len(worse) or 'None'} below {name}, {len(better) or 'none'} above it{named}.")
    rates = [row["tuned"][LR] for row in kept.content["rows"].values() if LR in row["tuned"]]
    if rates:
        count, (low, high) = rates.count(max(rates)), kept.content["tuning"]["lr"].split(":")[:2]
        lines.append(
            f"* Learning rate: drawn from {low} to {high}. {count} of {len(rates)} rows found the largest that any row "
            f"found, {max(rates):.2g}."
        )
    return "\n".join(lines)


def _columns(table: Table, keep: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Columns whose heads begin with one of some words."""
    return [
        (head, [row[position] for row in table.rows])
        for position, head in enumerate(table.heads)
        if head.startswith(tuple(keep))
    ]


def main_table(kept: Kept) -> Table:
    """Scores, multimodal and of each modality, and gains over the baseline and the references."""
    comparison = kept.comparison
    table, form = comparison_table(comparison), metric_form(comparison.metric)
    heads = [form.head(name) for name in ("fused", *comparison.modalities)]
    notes = [note for note in table.notes if not note.startswith("The methods differ in")]
    columns = _columns(table, ["method", *heads, "difference to", "over the"])
    return Table.from_columns(columns, notes, f"{kept.name}: {kept.entry.get('about', '')}")


def second_table(kept: Kept) -> Table:
    """Calibration, what is lost without a modality, cost, and the values that were found."""
    comparison, rows = kept.comparison, kept.content["rows"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row["fused"] if name in comparison.metrics))
    table = comparison_table(comparison, metrics=names)
    columns = _columns(table, ["method", *(metric_form(name).head("fused") for name in names), "data passes"])
    primary = metric_form(comparison.metric).head("fused")
    columns = [column for column in columns if column[0] != primary]
    lost = [kept.lost(label) for label in rows]
    shown = {f"lost without {name}": [of_row[name] for of_row in lost] for name in comparison.modalities}
    if len(comparison.modalities) > _LOST:
        means = [[value.mean for value in of_row.values() if value.runs] for of_row in lost]
        worst = [Estimate(max(values, default=math.nan), None, len(values)) for values in means]
        shown = {"lost without one, mean": [estimate(values) for values in means], "at worst": worst}
    for head, values in shown.items():
        cells = [Cell(f"{100 * value.mean:.1f}" if value.runs else "–") for value in values]
        columns.append((head, mark_best(cells, lambda number: -number)))
    minutes = {method.label: method.minutes.mean for method in comparison.methods}
    base = minutes.get(str(comparison.baseline), math.nan)
    times = [Cell(f"{minute / base:.1f}" if minute else "–") for minute in minutes.values()]
    columns.append((f"time, × {comparison.baseline}", times))
    texts = [
        ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in row["tuned"].items())
        for row in rows.values()
    ]
    columns.append(("tuned", [Cell(text or "–") for text in texts]))
    notes = [
        "Lost: points of the multimodal test score when every test sample lacks that modality, mean over seeds.",
        "Time of a run over that of the baseline; the runs that a row starts from are not counted.",
    ]
    return Table.from_columns(columns, notes, f"{kept.name}: calibration, missing modalities and cost")


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
