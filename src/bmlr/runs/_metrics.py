"""The table of epochs of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bmlr.runs.layout import METRICS


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
