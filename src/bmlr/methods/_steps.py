"""Steps of optimisers, of which methods that change gradients are told."""

from __future__ import annotations

import functools
import weakref
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepChecker(Protocol):
    """A method that refuses steps with gradients it did not adjust."""

    def check_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a RuntimeError if the step was taken too early."""


_watched: weakref.WeakSet[StepChecker] = weakref.WeakSet()


def watch_optimizers(method: StepChecker) -> None:
    """Have every optimiser step ask the method whether its gradients were adjusted."""
    _watched.add(method)
    _register_hook()


@functools.cache
def _register_hook() -> None:
    def ask(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for method in list(_watched):
            method.check_step(optimizer)

    # After the step: Lightning computes the loss, and the method adjusts, within the step.
    register_optimizer_step_post_hook(ask)
