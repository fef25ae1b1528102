"""``bmlr prepare``: published files decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table

from bmlr._console import make_console
from bmlr.commands.options import FLAT
from bmlr.data import PrepareOptions, PrepareResult, prepare
from bmlr.tables import format_count


def execute(
    data: str,
    source: Path,
    dest: Path,
    options: Annotated[PrepareOptions, FLAT] = PrepareOptions(),  # noqa: B008  (the parser reads defaults from here)
) -> None:
    """Decode a data set into a folder for training.

    Example:
        bmlr prepare manifest clips/table.csv prepared
        bmlr prepare crema-d CREMA-D prepared --workers 8

    Args:
        data: crema-d, kinetics-sounds, ave, ucf-101, food-101, mvsa-single, mosi, mosei, ch-sims, ur-funny or mustard;
            manifest for a CSV table of your own files.
        source: Folder or file of the published data, or the CSV table.
        dest: Folder in which the folder of the prepared data is made.
        options: Options of the preparation.
    """
    _print(prepare(data, source, dest, options))


def _print(result: PrepareResult) -> None:
    table = Table("target" if result.numbers else "class", *(split or "no published split" for split in result.counts))
    for label in result.classes:
        table.add_row(label, *(str(counts[label]) for counts in result.counts.values()))
    if result.numbers:
        table.add_row("range", *(f"{numbers.min:g} … {numbers.max:g}" for numbers in result.numbers.values()))
        table.add_row("mean ± std", *(f"{numbers.mean:.3g} ± {numbers.std:.3g}" for numbers in result.numbers.values()))
    table.add_section()
    table.add_row("all", *map(str, result.samples.values()))
    make_console(120).print(table)
    reasons = f", listed with reasons in {result.rejected_file}" if result.rejected else ""
    nouns = {"multiclass": "classes", "multilabel": "labels, any number per sample", "regression": "numbers as targets"}
    targets = f"{len(result.classes) or ''} {nouns[result.task]}".lstrip()
    print(
        f"{targets}, {format_count(sum(result.samples.values()), 'sample')}, {len(result.rejected)} rejected{reasons}"
    )
    for note in result.notes:
        print(note)
    print(f"{result.decoded} read by this call" if result.decoded else "All was prepared before; nothing was read.")
    print(result.folder)
