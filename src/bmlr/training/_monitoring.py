"""The gradient monitor under Lightning."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from bmlr.model import MultimodalClassifier
from bmlr.monitor import GradientMonitor


class MonitorCallback(Callback):
    """Gradient records at every optimiser step, written after every epoch.

    In distributed training norms are those of the averaged gradients, conflict is measured on the first process's
    batch, and the first process writes.

    Args:
        monitor: Monitor that measures and keeps the records.
    """

    def __init__(self, monitor: GradientMonitor) -> None:
        self.monitor = monitor
        self._batch: Any = None
        self._hooks = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Continue the records of a resumed training, and hook the optimiser."""
        model = getattr(pl_module, "model", None)
        if not isinstance(model, MultimodalClassifier):
            raise ValueError(
                "The gradient monitor needs a LightningModule whose `model` is a bmlr.MultimodalClassifier. "
                f"Found {type(model).__name__}."
            )
        self.monitor.resume(trainer.global_step)
        if not trainer.is_global_zero:
            return
        encoder_parameters = {id(p) for p in model.encoders.parameters()}

        def stepped(optimizer: Optimizer, *_: Any) -> None:
            if any(id(p) in encoder_parameters for group in optimizer.param_groups for p in group["params"]):
                self.monitor.record(model, self._batch)

        self._hooks.callback(register_optimizer_step_post_hook(stepped).remove)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the epoch of the records."""
        self.monitor.epoch = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch if conflict is measured on it."""
        self._batch = batch if self.monitor.wants_conflict and trainer.is_global_zero else None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the records."""
        self._batch = None
        if trainer.is_global_zero:
            self.monitor.write()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Remove the hook, also after an error."""
        self._hooks.close()
        self._batch = None
