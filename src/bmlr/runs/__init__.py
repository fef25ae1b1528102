"""Run directories: files, records, and groups of equal settings.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr._extras import missing_extra

try:
    from bmlr.runs._errors import MissingDataError, RunError, RunInterruptedError
    from bmlr.runs._lock import DirectoryLock
    from bmlr.runs._metrics import read_metrics, write_metrics
    from bmlr.runs._predictions import PredictionTable, read_predictions
    from bmlr.runs._records import RunRecord, find_runs, read_run, write_failure
    from bmlr.runs._result import metric_names, primary_score, read_result
    from bmlr.runs.settings import group_runs
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = [
    "DirectoryLock",
    "MissingDataError",
    "PredictionTable",
    "RunError",
    "RunInterruptedError",
    "RunRecord",
    "find_runs",
    "group_runs",
    "metric_names",
    "primary_score",
    "read_metrics",
    "read_predictions",
    "read_result",
    "read_run",
    "write_failure",
    "write_metrics",
]
