"""Optimiser, schedule and clipping under a Lightning trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from bmlr.config import OptimizerOptions
from bmlr.data import Split, SplitName
from bmlr.integrations.lightning import BalancedMixin
from bmlr.methods import EpochPlan, Method
from bmlr.modality_dropout import ModalityDropout, check_dropout
from bmlr.model import MultimodalClassifier
from bmlr.parameters import check_clipping, clip_gradients
from bmlr.tasks import metric_form
from bmlr.training._accumulation import Accumulation
from bmlr.training._evaluation import EvaluatedModule
from bmlr.training._warm_up import WarmUp
from bmlr.training.loader import planned_requests


class OptimizedModule(EvaluatedModule, BalancedMixin):
    """Model and method with their optimiser.

    Args:
        model: The model; its encoders are frozen as the options say.
        method: The method, set up for it.
        optimizer: Optimiser and schedule.

    Attributes:
        split: Gives one split of the prepared data; None for loaders of the trainer's.
        batch_size: Samples per step and device, used with ``split``.
        modality_dropout: Leaves modalities out of samples in training, if it is set.
        clip_norm: Largest norm of the gradients by modality, if it is set.

    Raises:
        ValueError: If the options do not fit the model.
    """

    split: Callable[[SplitName], Split] | None
    batch_size: int

    def __init__(self, model: MultimodalClassifier, method: Method, optimizer: OptimizerOptions) -> None:
        super().__init__(model, method)
        self._connect(model, method)
        self.optimizer_options = optimizer
        self.modality_dropout: ModalityDropout | None = None
        self.clip_norm: Mapping[str, float] | None = None
        self._warm_up: WarmUp | None = None
        self._accumulation: Accumulation | None = None  # of the epoch in training
        optimizer.parameter_groups(model, method.parameters())  # freezes encoders, or says what does not fit

    def check_options(self) -> None:
        """Raise a ValueError if clipping or dropout does not fit."""
        if self.clip_norm is not None:
            check_clipping(self.clip_norm, self.model)
        if self.modality_dropout is not None:
            check_dropout("modality_dropout", self.modality_dropout.rates, self.model.modalities, self.method)

    def configure_optimizers(self) -> Any:
        """The optimiser over model and method, and its schedule per epoch."""
        self.check_options()
        options = self.optimizer_options
        larger = metric_form(self.monitored).larger_is_better
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = options.optimizer(self.model, self.method.parameters(), fused=fused)
        if options.warmup_steps:
            self._warm_up = WarmUp(optimizer, options.warmup_steps, lambda: self.trainer.global_step)
        schedule = options.scheduler(
            optimizer, self.trainer.max_epochs or 1, self._count_steps, larger_is_better=larger
        )
        if schedule is None:
            return optimizer
        config = {"scheduler": schedule, "interval": options.interval, "monitor": f"val_{self.monitored}"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _count_steps(self) -> int:
        """Optimiser steps of the whole training.

        Raises:
            ValueError: If the method plans every epoch anew, so that nobody knows.
        """
        if self.split is None:
            return int(self.trainer.estimated_stepping_batches)
        if self.method.plans_passes:
            raise ValueError(
                f"Parameter `schedule` should have its length in init_args, such as total_steps: "
                f"{type(self.method).__name__} plans the steps of every epoch anew."
            )
        requests = planned_requests(
            EpochPlan(), len(self.split("train")), self.batch_size, seed=0, epoch=0,
            world_size=self.trainer.world_size,
        )  # fmt: skip
        return (self.trainer.max_epochs or 1) * math.ceil(len(requests) / self.trainer.accumulate_grad_batches)

    @property
    def _steps(self) -> Accumulation:
        if self._accumulation is None:
            raise RuntimeError("BalancedModule trains under a Lightning trainer: call trainer.fit(module).")
        return self._accumulation

    def setup(self, stage: str) -> None:
        """Take back what an interrupted epoch left in the trainer."""
        if self._accumulation is not None:
            self._accumulation.restore(self.trainer)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Reset the gradients, unless the trainer takes a batch for the first of a step that is not."""
        if self._steps.place(batch_idx)[0] == 0:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of each modality, or as the trainer does."""
        if self.clip_norm is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_gradients(self._trained_parameters(), self.clip_norm, self.model)

    def _learning_rate(self) -> float:
        """Rate of the parameters without options of their own."""
        rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
        return rate if self._warm_up is None else rate * self._warm_up.factor

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.trainer.optimizers[0].param_groups for p in group["params"]]
