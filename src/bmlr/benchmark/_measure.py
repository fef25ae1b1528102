"""Cost of runs, from a few steps of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from bmlr._files import atomic_write_text, json_text
from bmlr.benchmark._jobs import COST, EPOCHS
from bmlr.config import RunConfig, import_user_module, read_config
from bmlr.runs.layout import CONFIG
from bmlr.training import choose_threads, make_module, start_untrained

_STEPS = 4  # the first of them is not timed
_BUDGET = 10.0  # seconds for all configurations
_SHORT = 60.0  # of a grid that is shorter, one configuration is measured
_VALIDATION = 0.4  # cost of a batch of validation, in steps


def measure_runs(folder: Path, modules: Sequence[str]) -> int:
    """Measure the configurations in a folder, as long as there is time.

    Args:
        folder: Holds a folder with a ``config.yaml`` for each, which gets a ``cost.json``; and ``epochs``, the number
            of epochs of all runs of the grid.
        modules: Modules of the user's own classes.
    """
    for module in modules:
        import_user_module(module)
    started = time.monotonic()
    epochs = int((folder / EPOCHS).read_text())
    for path in sorted(folder.glob(f"*/{CONFIG}"), key=lambda path: int(path.parent.name)):
        cost = measure_config(read_config(path))
        atomic_write_text(path.with_name(COST), json_text(cost))
        if 0 < cost["epoch_seconds"] * epochs < _SHORT or time.monotonic() - started > _BUDGET:
            break
    return 0


def measure_config(config: RunConfig) -> dict[str, float]:
    """Seconds of an epoch and bytes of the weights, from a few steps of training."""
    module = make_module(config)
    start_untrained(config, module.model)
    torch.set_num_threads(choose_threads(config.trainer, module))
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    if not config.method.trains:
        return {"epoch_seconds": 0.0, "weights": weights}
    clock = _Clock()
    options = config.trainer
    with contextlib.suppress(_EnoughError):
        lightning.Trainer(
            max_epochs=options.epochs, accelerator=options.accelerator, devices=1, precision=options.precision,
            accumulate_grad_batches=options.accumulate_grad_batches, gradient_clip_val=options.joint_clip_val,
            callbacks=[clock], logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        ).fit(module)  # fmt: skip
    validation = _VALIDATION * -(-len(config.split("val")) // config.batch_size)
    return {"epoch_seconds": clock.step_seconds * (clock.steps_per_epoch + validation), "weights": weights}


class _EnoughError(Exception):
    """Enough steps were made."""


class _Clock(Callback):
    """Clock of the steps after the first, which warms up."""

    def __init__(self) -> None:
        self.started = 0.0
        self.times: list[float] = []
        self.steps_per_epoch = 1

    @property
    def step_seconds(self) -> float:
        """Mean time of a step."""
        first, *others = self.times
        return (others[-1] - first) / len(others) if others else first - self.started

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count the steps of an epoch."""
        self.steps_per_epoch = int(trainer.num_training_batches)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time; end after a few steps."""
        self.times.append(time.perf_counter())
        if len(self.times) == _STEPS:
            raise _EnoughError
