"""What a run directory is: its files, their readers, runs grouped by their settings.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr.runs._discovery import ExcludedRun, FinishedRun, read_runs
from bmlr.runs._errors import RunError, RunInterruptedError
from bmlr.runs._lock import DirectoryLock
from bmlr.runs._metrics import read_metrics
from bmlr.runs._predictions import PredictionTable, read_predictions
from bmlr.runs._records import RunRecord, read_record, read_store, write_failure
from bmlr.runs._settings import group_records

__all__ = [
    "DirectoryLock",
    "ExcludedRun",
    "FinishedRun",
    "PredictionTable",
    "RunError",
    "RunInterruptedError",
    "RunRecord",
    "group_records",
    "read_metrics",
    "read_predictions",
    "read_record",
    "read_runs",
    "read_store",
    "write_failure",
]
