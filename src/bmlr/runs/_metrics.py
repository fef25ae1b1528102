"""The table of epochs of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from bmlr._files import atomic_write
from bmlr.runs.layout import METRICS

#: Columns of whole numbers.
_COUNTS = ("epoch", "samples")


def write_metrics(run: Path | str, rows: Sequence[Mapping[str, float]], *, durable: bool = True) -> None:
    """Write the metrics of a run atomically.

    Written without a table of pandas, which takes as long as ten steps of a small model.

    Args:
        run: Directory of the run.
        rows: One per epoch; a name that a row lacks, and NaN, leave the cell empty.
        durable: Wait until the file is on the disk.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([_cell(name, row.get(name, math.nan)) for name in names] for row in rows)

    atomic_write(Path(run) / METRICS, write, durable=durable)


def _cell(name: str, value: float) -> float | str:
    if math.isnan(value):
        return ""
    return int(value) if name in _COUNTS else float(value)


def read_metrics(run: Path | str) -> pd.DataFrame:
    """Read the metrics of a run, one row per epoch.

    Args:
        run: Directory of the run.

    Raises:
        FileNotFoundError: If the run has no finished epoch.
        ValueError: If the file is not a table of epochs.
    """
    path = Path(run) / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"There are no metrics in {run}: {path.name} is missing.")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} is not a table: {' '.join(str(error).split())}") from error
    if "epoch" not in table or not len(table):
        raise ValueError(f"{path} should have a column epoch and at least one row.")
    return table
