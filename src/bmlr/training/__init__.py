"""Training, evaluation and prediction of runs under Lightning.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr._extras import missing_extra

try:
    from bmlr.config import OptimizerOptions
    from bmlr.training._directory import RunResult
    from bmlr.training._guard import NonFiniteLossError
    from bmlr.training._hardware import check_hardware
    from bmlr.training._module import BalancedModule
    from bmlr.training._monitoring import MonitorCallback
    from bmlr.training._processes import is_first_process
    from bmlr.training._reading import LoadedRun, evaluate_run, load, split_batches
    from bmlr.training._required import failure_text, start_untrained
    from bmlr.training._scores import Score, ScoreMetric, evaluate
    from bmlr.training._threads import choose_threads
    from bmlr.training._train import make_module, train
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = [
    "BalancedModule",
    "LoadedRun",
    "MonitorCallback",
    "NonFiniteLossError",
    "OptimizerOptions",
    "RunResult",
    "Score",
    "ScoreMetric",
    "check_hardware",
    "choose_threads",
    "evaluate",
    "evaluate_run",
    "failure_text",
    "is_first_process",
    "load",
    "make_module",
    "split_batches",
    "start_untrained",
    "train",
]
