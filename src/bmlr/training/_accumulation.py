"""Optimiser steps of several batches."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import lightning

from bmlr.training.loader import BatchRequest


class Accumulation:
    """Batches of each optimiser step of an epoch.

    A step has as many as are accumulated, fewer at the end of a pass: passes train different parts of a model, and a
    step of two of them would be one of neither.

    Args:
        accumulate: Batches of a step.
        pass_ends: Number of batches from the beginning of the epoch to the end of each pass; infinite if unknown.
    """

    def __init__(self, accumulate: int, pass_ends: Sequence[float]) -> None:
        self.accumulate = accumulate
        self._bounds = [0, *pass_ends]
        #: Whether steps end within an epoch where the trainer would not end them.
        self.is_uneven = any(end % accumulate for end in pass_ends[:-1])

    @property
    def num_steps(self) -> float:
        """Number of steps of the epoch."""
        return sum(
            math.ceil((end - start) / self.accumulate) if math.isfinite(end) else math.inf
            for start, end in itertools.pairwise(self._bounds)
        )

    def place(self, batch_idx: int) -> tuple[int, int]:
        """Position of a batch in its step, from zero, and the number of batches of the step."""
        following = min(bisect.bisect_right(self._bounds, batch_idx), len(self._bounds) - 1)
        start, end = self._bounds[following - 1], self._bounds[following]
        number = int(batch_idx - start) % self.accumulate
        return number, int(min(self.accumulate, max(end - batch_idx, 1) + number))

    def is_last(self, batch_idx: int) -> bool:
        """Whether a batch is the last of its step."""
        number, size = self.place(batch_idx)
        return number + 1 == size

    def prepare(self, trainer: lightning.Trainer, batch_idx: int) -> None:
        """Have the trainer take its step after this batch, or not.

        Lightning steps where the number of batches done is divisible by ``accumulate_grad_batches``.
        """
        if self.is_uneven:
            done = batch_idx + 1
            trainer.accumulate_grad_batches = (
                1 if self.is_last(batch_idx) else next(n for n in itertools.count(2) if done % n)
            )

    def restore(self, trainer: lightning.Trainer) -> None:
        """Give the trainer its own number of batches back."""
        trainer.accumulate_grad_batches = self.accumulate


def pass_ends(requests: Sequence[BatchRequest]) -> list[float]:
    """Number of batches up to the end of each pass, by which no step goes beyond."""
    return [done for done, request in enumerate(requests, 1) if request.ends_pass] or [len(requests)]
