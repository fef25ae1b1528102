"""``bmlr prepare``: published files decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from bmlr._console import make_console
from bmlr.data import PrepareOptions, PrepareResult, prepare


def execute(data: str, source: Path, dest: Path, outside: bool = False, **options: Any) -> None:
    """Decode a data set into a folder for training.

    Args:
        data: Name of the data set, or table for a CSV table of your own files.
        source: Folder of the published files, or the table.
        dest: Folder in which the folder of the prepared data is made.
        outside: Let a table name files outside its folder.
        **options: Options of :class:`bmlr.data.PrepareOptions`, where the parser finds them.
    """
    _print(prepare(data, source, dest, PrepareOptions(outside=outside, **options)))


def _print(result: PrepareResult) -> None:
    table = Table("class", *(split or "no published split" for split in result.counts))
    for label in result.classes:
        table.add_row(label, *(str(counts[label]) for counts in result.counts.values()))
    table.add_section()
    sums = [sum(counts.values()) for counts in result.counts.values()]
    table.add_row("all", *map(str, sums))
    make_console(120).print(table)
    reasons = f", listed with reasons in {result.rejected_file}" if result.rejected else ""
    print(f"{len(result.classes)} classes, {sum(sums)} samples, {len(result.rejected)} rejected{reasons}")
    for note in result.notes:
        print(note)
    print(f"{result.decoded} read by this call" if result.decoded else "All was prepared before; nothing was read.")
    print(result.folder)
