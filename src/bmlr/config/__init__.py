"""Configuration of a run: its options, its model and its file."""

from bmlr._extras import missing_extra

try:
    from bmlr.config._classes import class_path, resolve_class
    from bmlr.config._file import load_plain_yaml, read_config_entries, read_plain_yaml
    from bmlr.config._given import GivenModel
    from bmlr.config._model import build_model
    from bmlr.config._optimizer import OptimizerOptions
    from bmlr.config._options import ModelOptions, TrainerOptions, as_options, fill_defaults
    from bmlr.config._parts import import_user_module, split_specification
    from bmlr.config._run_config import RunConfig, read_config
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = [
    "GivenModel",
    "ModelOptions",
    "OptimizerOptions",
    "RunConfig",
    "TrainerOptions",
    "as_options",
    "build_model",
    "class_path",
    "fill_defaults",
    "import_user_module",
    "load_plain_yaml",
    "read_config",
    "read_config_entries",
    "read_plain_yaml",
    "resolve_class",
    "split_specification",
]
