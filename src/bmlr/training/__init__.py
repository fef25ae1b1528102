"""Training under Lightning: one module for every method, run directories, evaluation and prediction.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr.config._model import build_model
from bmlr.config._options import ModelOptions, OptimizerOptions, TrainerOptions, fill_defaults
from bmlr.config._run_config import RunConfig, read_config
from bmlr.runs._predictions import read_predictions
from bmlr.training._directory import RunResult
from bmlr.training._errors import RunError, RunInterruptedError
from bmlr.training._guard import NonFiniteLossError
from bmlr.training._loader import BatchRequest, RequestLoader, ordered_requests, planned_requests
from bmlr.training._module import BalancedModule
from bmlr.training._monitoring import MonitorCallback
from bmlr.training._reading import evaluate_run, load_run, predict_run
from bmlr.training._scores import Score, ScoreMetric, evaluate
from bmlr.training._train import train

__all__ = [
    "BalancedModule",
    "BatchRequest",
    "ModelOptions",
    "MonitorCallback",
    "NonFiniteLossError",
    "OptimizerOptions",
    "RequestLoader",
    "RunConfig",
    "RunError",
    "RunInterruptedError",
    "RunResult",
    "Score",
    "ScoreMetric",
    "TrainerOptions",
    "build_model",
    "evaluate",
    "evaluate_run",
    "fill_defaults",
    "load_run",
    "ordered_requests",
    "planned_requests",
    "predict_run",
    "read_config",
    "read_predictions",
    "train",
]
