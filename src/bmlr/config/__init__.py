"""Configuration of a run: options, the model they describe, the file that re-runs it."""

from bmlr.config._classes import class_path, resolve_class
from bmlr.config._model import build_model
from bmlr.config._options import ModelOptions, OptimizerOptions, TrainerOptions, fill_defaults
from bmlr.config._run_config import RunConfig, read_config
from bmlr.config._yaml import load_plain_yaml

__all__ = [
    "ModelOptions",
    "OptimizerOptions",
    "RunConfig",
    "TrainerOptions",
    "build_model",
    "class_path",
    "fill_defaults",
    "load_plain_yaml",
    "read_config",
    "resolve_class",
]
