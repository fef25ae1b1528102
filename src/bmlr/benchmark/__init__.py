"""Comparison of methods: grids of runs, statistics, tables, the search of parameters.

Needs the ``train`` extra; the search of parameters and runs on a Ray cluster the ``sweep`` extra too.
"""

from bmlr.benchmark._compare import CompareResult, compare, compare_store
from bmlr.benchmark._comparison import Comparison, IncomparableError, MethodSummary, compare_runs, run_frame, title_of
from bmlr.benchmark._engines import Engine, LocalEngine, RayEngine, Task, make_engine
from bmlr.benchmark._grid import make_jobs, run_grid
from bmlr.benchmark._jobs import Job
from bmlr.benchmark._specification import MethodSpecification, parse_data, parse_method
from bmlr.benchmark._study import Search
from bmlr.benchmark._tables import Cell, Table, comparison_frame, comparison_table, write_table
from bmlr.benchmark._tune import TuneResult, tune
from bmlr.benchmark.statistics import Difference, Estimate, bootstrap_difference, mean_ranks

__all__ = [
    "Cell",
    "CompareResult",
    "Comparison",
    "Difference",
    "Engine",
    "Estimate",
    "IncomparableError",
    "Job",
    "LocalEngine",
    "MethodSpecification",
    "MethodSummary",
    "RayEngine",
    "Search",
    "Table",
    "Task",
    "TuneResult",
    "bootstrap_difference",
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
    "run_frame",
    "run_grid",
    "title_of",
    "tune",
    "write_table",
]
