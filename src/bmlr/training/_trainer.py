"""Lightning's trainer for a run."""

from __future__ import annotations

import contextlib
import logging
import platform
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from bmlr._console import make_console
from bmlr._version import __version__
from bmlr.config import RunConfig
from bmlr.monitor import GradientMonitor
from bmlr.training._errors import first_line
from bmlr.training._graph_choice import GraphCallback
from bmlr.training._hardware import check_port
from bmlr.training._loggers import StepLogs, make_loggers
from bmlr.training._monitoring import MonitorCallback
from bmlr.training._processes import set_rank
from bmlr.training._progress import can_show_bar, progress_callbacks


def make_trainer(config: RunConfig, directory: Path, watch: Callback) -> lightning.Trainer:
    """Lightning's trainer for a run; it writes nothing before it trains.

    Args:
        config: Configuration of the run.
        directory: Directory of the run, for TensorBoard events and gradients.
        watch: Callback that handles signals and lost processes.

    Raises:
        ValueError: If the options do not fit the machine, the job or each other.
    """
    with silence_lightning():
        loggers = make_loggers(config, directory)
        try:
            trainer = _make_trainer(config, directory, watch, loggers)
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"The options of the trainer do not fit this machine: {first_line(error)}") from error
    # Until now it was the rank of the environment, where RANK may be left from another program.
    set_rank(trainer.global_rank)
    check_port(trainer.world_size, trainer.global_rank)
    return trainer


def _make_trainer(config: RunConfig, directory: Path, watch: Callback, loggers: list[Logger]) -> lightning.Trainer:
    options = config.trainer
    console = make_console()
    callbacks = [watch, *progress_callbacks(config, console)]
    if loggers:
        callbacks.append(StepLogs())
    if options.graph == "auto":
        callbacks.append(GraphCallback(options))
    if options.gradients:
        callbacks.append(MonitorCallback(GradientMonitor(directory)))
    return lightning.Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=_strategy(config),
        num_nodes=options.num_nodes,
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.joint_clip_val,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=options.progress and can_show_bar(console),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # a method may plan other passes for every epoch
        use_distributed_sampler=False,
        profiler=_NoProfiler(),
    )


class _NoProfiler(PassThroughProfiler):
    """No profiler, at no cost: the trainer's own makes forty context managers per step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """Nothing."""
        return self._nothing


def _strategy(config: RunConfig) -> str:
    """The strategy of the trainer.

    DDP has to look for unused parameters if the method leaves gradients unset. Otherwise DDP refuses the step after one
    in which a parameter got no gradient.
    """
    options = config.trainer
    # A modality that dropout takes from a whole batch leaves its encoder's unset too.
    if not (config.method.leaves_gradients_unset or options.modality_dropout) or options.strategy not in {
        "auto",
        "ddp",
    }:
        return options.strategy
    if options.strategy == "auto":  # Lightning chooses ddp for several processes, which only a trainer can tell
        probe = lightning.Trainer(
            accelerator=options.accelerator, devices=options.devices, num_nodes=options.num_nodes, logger=False,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        if probe.world_size == 1:
            return "auto"
    return "ddp_find_unused_parameters_true"


class silence_lightning(warnings.catch_warnings):  # noqa: N801  (used like its parent)
    """Silence Lightning's advice against deliberate choices of this package, and its advertisements."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in (
            r".*does not have many workers.*",
            r".*number of training batches .* is smaller than the logging interval.*",
            r".*Found \d+ module\(s\) in eval mode.*",
            r".*GPU available but not used.*",
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
            r".*isinstance\(treespec, LeafSpec\).*",
            r".*It is recommended to use `self\.log\(.*sync_dist=True.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)

    def __exit__(self, *arguments: Any) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        super().__exit__(*arguments)


_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.fabric",
)


def software_versions() -> dict[str, str]:
    """Versions of the software, number of threads and name of the device, for ``result.json``."""
    return {
        "bmlr": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
