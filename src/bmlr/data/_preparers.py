"""Prepare published data sets by name."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

from bmlr._checks import check_choice
from bmlr.data.store._options import PrepareOptions, PrepareResult

# How each data set is prepared: module and function, called with (source, dest, options).
PREPARERS: dict[str, tuple[str, str]] = {
    "crema-d": ("bmlr.data.sets._layouts", "prepare_crema_d"),
    "kinetics-sounds": ("bmlr.data.sets._layouts", "prepare_kinetics_sounds"),
    "ave": ("bmlr.data.sets._layouts", "prepare_ave"),
    "mosi": ("bmlr.data.sets._sentiment", "prepare_mosi"),
    "mosei": ("bmlr.data.sets._sentiment", "prepare_mosei"),
    "table": ("bmlr.data.sets._table_files", "prepare_table"),
}


def prepare(name: str, source: Path, dest: Path, options: PrepareOptions | None = None) -> PrepareResult:
    """Prepare a data set by its name from the folder or file its publisher offers.

    Args:
        name: Name of the data set.
        source: What was downloaded.
        dest: Folder in which the folder of the prepared data is made.
        options: Options.

    Raises:
        FileNotFoundError: If a folder or list is missing.
        ValueError: If the name or an option is wrong, or too many samples are rejected.
    """
    check_choice("data", name, PREPARERS)
    module, function = PREPARERS[name]
    result: PrepareResult = getattr(importlib.import_module(module), function)(
        Path(source), Path(dest), options or PrepareOptions()
    )
    return result
