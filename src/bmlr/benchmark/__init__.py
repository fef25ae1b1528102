"""Comparison of methods: grids of runs, statistics, tables, the search of parameters, the paper's experiments.

Needs the ``train`` extra; the search of parameters and runs on a Ray cluster the ``sweep`` extra too.
"""

from bmlr.benchmark._collect import Collected, collect_run
from bmlr.benchmark._compare import Compared, compare, compare_store
from bmlr.benchmark._engines import Engine, LocalEngine, RayEngine, Task, make_engine
from bmlr.benchmark._grid import make_jobs, run_grid
from bmlr.benchmark._lock import DirectoryLock
from bmlr.benchmark._reproduce import Reproduced, Settings, reproduce
from bmlr.benchmark._specification import MethodSpecification, parse_data, parse_method
from bmlr.benchmark._statistics import (
    Comparison,
    Difference,
    Estimate,
    IncomparableError,
    MethodSummary,
    bootstrap_difference,
    compare_runs,
    mean_ranks,
    run_frame,
)
from bmlr.benchmark._store import Job, RunRecord, read_record, read_store
from bmlr.benchmark._tables import Cell, Table, comparison_frame, comparison_table, write_table
from bmlr.benchmark._tune import Search, Tuned, tune

__all__ = [
    "Cell",
    "Collected",
    "Compared",
    "Comparison",
    "Difference",
    "DirectoryLock",
    "Engine",
    "Estimate",
    "IncomparableError",
    "Job",
    "LocalEngine",
    "MethodSpecification",
    "MethodSummary",
    "RayEngine",
    "Reproduced",
    "RunRecord",
    "Search",
    "Settings",
    "Table",
    "Task",
    "Tuned",
    "bootstrap_difference",
    "collect_run",
    "compare",
    "compare_runs",
    "compare_store",
    "comparison_frame",
    "comparison_table",
    "make_engine",
    "make_jobs",
    "mean_ranks",
    "parse_data",
    "parse_method",
    "read_record",
    "read_store",
    "reproduce",
    "run_frame",
    "run_grid",
    "tune",
    "write_table",
]
