"""Comparison of methods: runs, statistics, tables, and the search of parameters.

Grids of runs are in ``benchmark.grid``, engines in ``benchmark.engines``, specifications of methods in
``benchmark.specification``, means, intervals and ranks in ``benchmark.statistics``. Needs the ``train`` extra; the
search of parameters and runs on a Ray cluster need the ``sweep`` extra too.
"""

from bmlr._extras import missing_extra

try:
    from bmlr.benchmark._compare import CompareResult, compare, compare_store
    from bmlr.benchmark._comparison import Comparison, IncomparableError, compare_runs, run_frame
    from bmlr.benchmark._study import Search
    from bmlr.benchmark._tables import comparison_table
    from bmlr.benchmark._tune import TuneResult, tune
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = [
    "CompareResult",
    "Comparison",
    "IncomparableError",
    "Search",
    "TuneResult",
    "compare",
    "compare_runs",
    "compare_store",
    "comparison_table",
    "run_frame",
    "tune",
]
