"""What a training prints while it goes on."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from bmlr.config import RunConfig
from bmlr.tables import format_count, format_duration
from bmlr.tasks import metric_form
from bmlr.training._advice import advise, advise_on_labels, describe_run
from bmlr.training._module import BalancedModule
from bmlr.training._threads import choose_threads

_log = logging.getLogger("bmlr.training")

_TIMED_STEPS = 5
#: States of the progress bar.
_PER_SECOND = 10
#: Seconds from which on a run is long enough to say how it could be shorter.
_LONG = 600.0


def progress_callbacks(config: RunConfig, console: Console) -> list[Callback]:
    """The callbacks that choose the threads, say what a run will do, and show how far it is.

    A terminal gets a bar, a pipe, a file or a terminal without cursor movement a line per epoch.
    """
    callbacks: list[Callback] = [_Announcement(config, console)]
    if config.trainer.progress:
        callbacks.append(_ProgressBar() if can_show_bar(console) else _EpochLines(console))
    return callbacks


def can_show_bar(console: Console) -> bool:
    """Whether a console can show a progress bar."""
    return console.is_terminal and not console.is_dumb_terminal


class _Announcement(Callback):
    """Threads, and what a run will do, before and after its first steps."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config, self.console = config, console
        self._times: list[float] = []
        self._steps = 0
        self._advised = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Here, after Lightning has started the processes of the run: it sets a number of its own then.
        processes = max(1, trainer.world_size // trainer.num_nodes)
        torch.set_num_threads(choose_threads(self.config.trainer, pl_module, processes))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        steps = int(cast("BalancedModule", pl_module).steps_in_epoch)
        self._steps = steps * (self.config.trainer.epochs or 1)
        if not trainer.is_global_zero:
            return
        if self.config.trainer.progress:
            line = describe_run(
                self.config,
                parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
                steps=steps,
                threads=torch.get_num_threads(),
                device=str(trainer.strategy.root_device),
            )
            self.console.print(line, soft_wrap=True)
        if trainer.global_step == 0:  # a resumed run has said it before
            for remark in advise(self.config, self._steps, torch.get_num_threads()):
                _log.warning("%s", remark)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self._times) > _TIMED_STEPS or not (trainer.is_global_zero and self.config.trainer.progress):
            return
        self._times.append(time.perf_counter())
        if len(self._times) <= _TIMED_STEPS:
            return
        # The median: an epoch may have ended in between, with its validation.
        pauses = sorted(after - before for before, after in zip(self._times, self._times[1:], strict=False))
        batches = self._steps * self.config.trainer.accumulate_grad_batches
        seconds = pauses[len(pauses) // 2] * batches
        shorter = (
            "; a smaller --model.width or fewer --trainer.epochs take less, see docs/own-data.md"
            if seconds > _LONG
            else ""
        )
        self.console.print(
            f"{format_count(self._steps, 'step')} in all, about {format_duration(seconds)}{shorter}.", soft_wrap=True
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._advised or not (trainer.is_global_zero and isinstance(pl_module, BalancedModule)):
            return
        if remark := advise_on_labels(pl_module.history):
            self._advised = True
            _log.warning("%s", remark)


class _ProgressBar(RichProgressBar):
    """Lightning's progress bar, with epochs counted from one as everywhere else.

    It shows ten states per second: to draw a hundred, as Lightning does, takes a fifth of a processor.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=_PER_SECOND)
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the batch, unless the one before was just shown."""
        now = time.perf_counter()
        if now - self._shown >= 1 / _PER_SECOND or batch_idx + 1 == trainer.num_training_batches:
            self._shown = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """The metrics without Lightning's version of the log, and scores in the form of people."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if not isinstance(pl_module, BalancedModule):
            return dict(metrics)
        name = pl_module.monitored
        if math.isfinite(pl_module.step_loss):
            metrics["loss"] = pl_module.step_loss
        if isinstance(value := metrics.pop(f"val_{name}", None), float):
            metrics[f"validation {metric_form(name).title}"] = metric_form(name).text(value)
        return dict(metrics)


class _EpochLines(Callback):
    """One printed line per epoch, in place of a progress bar."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(pl_module, BalancedModule) and pl_module.val_score is not None:
            score = pl_module.val_score
            name = pl_module.monitored
            form = metric_form(name)
            alone = ", ".join(f"{u} {form.text(metrics[name])}" for u, metrics in score.unimodal_metrics.items())
            self.console.print(
                f"epoch {pl_module.epochs_done + 1}/{trainer.max_epochs}: "
                f"validation {form.title} {form.text(score.metrics[name])} ({alone})",
                highlight=False,
                soft_wrap=True,
            )
