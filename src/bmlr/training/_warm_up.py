"""Warm-up of learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class WarmUp:
    """Linear rise of learning rates over the first steps.

    It is on top of any schedule: the rates are scaled for the step alone. A schedule that multiplies the last rate
    (step, cosine) and one that sets it (OneCycleLR) find theirs unchanged.

    Args:
        optimizer: The optimiser.
        steps: Number of the step that is the first with the full rate, from one.
        count: Gives the number of finished steps, which survives a resume.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([parameter], lr=1.0)
        >>> done = iter([0, 0, 1, 1])
        >>> _ = WarmUp(optimizer, 2, lambda: next(done))
        >>> parameter.grad = torch.ones(1)
        >>> optimizer.step()
        >>> parameter, optimizer.param_groups[0]["lr"]
        (Parameter containing:
        tensor([-0.5000], requires_grad=True), 1.0)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, count: Callable[[], int]) -> None:
        self.steps, self.count = steps, count
        self._rates: list[float] = []
        optimizer.register_step_pre_hook(self._scale)
        optimizer.register_step_post_hook(self._restore)

    @property
    def factor(self) -> float:
        """Factor of the rates at the next step."""
        return min(1.0, (self.count() + 1) / self.steps)

    def _scale(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        factor = self.factor
        for group in optimizer.param_groups:
            group["lr"] *= factor

    def _restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
