"""``bmlr inspect``: faults of a data set, and samples of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.panel import Panel
from rich.table import Table

from bmlr._console import make_console
from bmlr._files import atomic_write, check_output, json_text
from bmlr.data import MultimodalData
from bmlr.tables import format_percent

if TYPE_CHECKING:
    from bmlr.data.inspection import InputReport, Inspection


def execute(
    data: MultimodalData,
    sheet: Path | None = None,
    split: Literal["train", "val", "test"] = "train",
    per_class: int = 4,
    samples: int | None = None,
    json: bool = False,
) -> None:
    """Check a data set and draw samples of it.

    Example:
        bmlr inspect digits
        bmlr inspect manifest --data.root prepared --sheet samples.png

    Args:
        data: Data set.
        sheet: PNG file of the drawn samples; by default inspect-NAME.png in the working directory.
        split: Split of the drawn samples.
        per_class: Drawn samples of each class.
        samples: Samples per split whose values are read; by default all.
        json: Print the report as JSON.
    """
    path = sheet or Path(f"inspect-{data.name}.png")
    check_output("--sheet", path, is_folder=False)
    from bmlr.data.inspection import contact_sheet, inspect_data
    from bmlr.figures.style import save

    inspection = inspect_data(data, samples=samples, progress=sys.stderr.isatty())
    figure = contact_sheet(data, split=split, per_class=per_class)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: save(figure, temporary, format="png"))
    if json:
        print(json_text({**inspection.as_dict(), "sheet": str(path)}))
    else:
        _print(inspection)
        if inspection.traps:
            print("\n* ".join([f"Known of {inspection.data}:", *inspection.traps]))
        print(f"Samples of each class are shown in {path}")


def _print(inspection: Inspection) -> None:
    splits = inspection.splits
    console = make_console(120)
    first = next(iter(splits.values()))
    counts = Table("target" if first.numbers else "class", title=f"{inspection.data}, {inspection.protocol} protocol")
    for name in splits:
        counts.add_column(name, justify="right")
    for label in inspection.classes:
        counts.add_row(label, *(str(split.counts[label]) for split in splits.values()))
    if ranges := {name: split.numbers for name, split in splits.items() if split.numbers is not None}:
        counts.add_row("range", *(f"{numbers.min:g} … {numbers.max:g}" for numbers in ranges.values()))
        counts.add_row("mean ± std", *(f"{numbers.mean:.3g} ± {numbers.std:.3g}" for numbers in ranges.values()))
    counts.add_section()
    counts.add_row("all", *(str(split.samples) for split in splits.values()))
    rates = [split.majority_rate for split in splits.values() if split.majority_rate is not None]
    if rates:
        counts.add_row("majority rate", *map(format_percent, rates))
    counts.add_row("groups", *("–" if split.groups is None else str(split.groups) for split in splits.values()))
    console.print(counts)
    lengths = _length_columns(inspection)
    inputs = Table("modality", "split", "missing", "values", "mean ± std", "NaN, inf", *lengths)
    for modality, form in inspection.modalities.items():
        title = f"{modality}: {form.kind} {'×'.join(map(str, form.shape))}"
        for name, split in splits.items():
            inputs.add_row(title, name, *_input_cells(split.inputs[modality], lengths))
            title = ""
    console.print(inputs)
    if any(split.n_read < split.samples for split in splits.values()):
        read = ", ".join(f"{split.n_read} of {split.samples} ({name})" for name, split in splits.items())
        print(f"Values were read of a sample only: {read}.")
    for remark in inspection.remarks:
        print(remark)
    if inspection.alarms:
        console.print(Panel("\n".join(inspection.alarms), title="WARNING", style="bold red"))


def _length_columns(inspection: Inspection) -> list[str]:
    """Columns for lengths, where a modality has any."""
    inputs = [report for split in inspection.splits.values() for report in split.inputs.values()]
    return [column for column in ("steps", "seconds") if any(getattr(report, column) for report in inputs)]


def _input_cells(report: InputReport, lengths: Sequence[str]) -> list[str]:
    """Cells of a row in the table of inputs."""
    values = "–" if report.min is None else f"{report.min:.3g} … {report.max:.3g}"
    mean = "–" if report.mean is None else f"{round(report.mean, 3) + 0:.3f} ± {report.std:.3g}"
    ranges = [getattr(report, column) for column in lengths]
    cells = ["–" if s is None else f"{s.min:.4g} … {s.median:.4g} … {s.max:.4g}" for s in ranges]
    return [f"{100 * report.missing:.1f} %", values, mean, f"{report.nan}, {report.infinite}", *cells]
