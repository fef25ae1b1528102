"""Comparison of methods: grids of runs, statistics, tables, the search of parameters.

Needs the ``train`` extra; the search of parameters and runs on a Ray cluster the ``sweep`` extra too.
"""

from bmlr.benchmark._compare import CompareResult, compare, compare_store
from bmlr.benchmark._comparison import Comparison, IncomparableError, MethodSummary, compare_runs, run_frame
from bmlr.benchmark._engines import Engine, LocalEngine, RayEngine, Task, make_engine
from bmlr.benchmark._grid import make_jobs, run_grid
from bmlr.benchmark._jobs import Job
from bmlr.benchmark._study import Search
from bmlr.benchmark._tables import Cell, Table, comparison_frame, comparison_table, write_table
from bmlr.benchmark._tune import TuneResult, tune

__all__ = [
    "Cell",
    "CompareResult",
    "Comparison",
    "Engine",
    "IncomparableError",
    "Job",
    "LocalEngine",
    "MethodSummary",
    "RayEngine",
    "Search",
    "Table",
    "Task",
    "TuneResult",
    "compare",
    "compare_runs",
    "compare_store",
    "comparison_frame",
    "comparison_table",
    "make_engine",
    "make_jobs",
    "run_frame",
    "run_grid",
    "tune",
    "write_table",
]
