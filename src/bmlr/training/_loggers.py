"""Loggers of a run, by class path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from bmlr._files import text_checksum
from bmlr._random import preserved_random_state
from bmlr.config import RunConfig, resolve_class
from bmlr.runs.layout import TENSORBOARD
from bmlr.training._module import BalancedModule

#: Steps from one logged loss to the next.
_EVERY = 10


def make_loggers(config: RunConfig, directory: Path) -> list[Logger]:
    """Make the loggers of a run.

    They write nothing before they are started. What a logger keeps on this machine goes into the run's directory, and
    its run has the directory's name, unless their parameters say otherwise.

    Raises:
        ValueError: If there is no such logger, or its parameters do not fit.
    """
    return [_make_logger(entry["class_path"], entry["init_args"], directory) for entry in config.trainer.loggers]


def _make_logger(path: str, arguments: dict[str, Any], directory: Path) -> Logger:
    cls = resolve_class(path, Logger)  # type: ignore[type-abstract]
    parameters = inspect.signature(cls).parameters
    defaults: dict[str, Any] = {}
    if "save_dir" in parameters and parameters["save_dir"].default in {inspect.Parameter.empty, "."}:
        defaults["save_dir"] = directory
    name = cls.__name__ if cls.__module__.startswith("lightning.") else ""
    if name == "TensorBoardLogger":
        defaults |= {"name": "", "version": TENSORBOARD}
    elif name == "CSVLogger":
        defaults["name"] = "csv"
    elif name == "WandbLogger":  # with an id of its own a resumed run goes on in the same page
        defaults |= {"name": directory.name, "id": text_checksum(str(directory.resolve()))[:16]}
    elif name == "MLFlowLogger":
        defaults["run_name"] = directory.name
    try:
        return cls(**{**defaults, **arguments})
    except Exception as error:  # whatever parameters of wrong types cause in any class
        raise ValueError(f"Option --trainer.logger: {cls.__name__} does not take {arguments}: {error}") from error


def start_loggers(trainer: lightning.Trainer, config: RunConfig) -> None:
    """Open the loggers' experiments and give them the configuration.

    None of it may shift the draws of the training.
    """
    with preserved_random_state():
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)
            if not isinstance(logger, (TensorBoardLogger, CSVLogger)):
                logger.log_hyperparams(config.as_dict())


def finish_loggers(trainer: lightning.Trainer) -> None:
    """Close experiments.

    One of W&B would take in the next run of this process too.
    """
    for logger in trainer.loggers:
        if callable(finish := getattr(getattr(logger, "experiment", None), "finish", None)):
            finish()


class StepLogs(Callback):
    """The loss of every tenth step, for the loggers of a run."""

    def __init__(self) -> None:
        self._step = 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss, once per step of several batches."""
        step, module = trainer.global_step, pl_module
        if step == self._step or step % _EVERY or not isinstance(module, BalancedModule) or module.guard.nonfinite:
            return
        self._step = step
        _log(trainer, {"epoch": trainer.current_epoch, "loss": module.step_loss})


def log_epoch(module: BalancedModule) -> None:
    """Log the numbers of the last epoch."""
    _log(module.trainer, module.history[-1])


def _log(trainer: lightning.Trainer, values: Mapping[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step - 1)
