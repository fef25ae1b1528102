"""State of an epoch: sums over its samples and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bmlr.methods import EpochPlan, Pass


class EpochSums:
    """Sums of losses and logged values over the samples of an epoch.

    Attributes:
        samples: Number of samples summed.
    """

    def __init__(self) -> None:
        self.samples = 0
        # One tensor for the values that come together, and so few kernels per step.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._before_step: tuple[dict[tuple[str, ...], Tensor], int] = ({}, 0)

    @property
    def values(self) -> dict[str, Tensor]:
        """Sums by name, each batch weighted by its number of samples."""
        values: dict[str, Tensor] = {}
        for names, sums in self._sums.items():
            for name, value in zip(names, sums.unbind(), strict=True):
                values[name] = values[name] + value if name in values else value
        return values

    def begin_step(self) -> None:
        """Remember the sums, in case the optimiser step is skipped."""
        self._before_step = (dict(self._sums), self.samples)  # `add` makes new tensors, so a shallow copy will do

    def skip_step(self) -> None:
        """Return to the sums before the optimiser step."""
        self._sums, self.samples = self._before_step

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], batch_size: int) -> None:
        """Add means over a batch."""
        names, device = tuple(values), values["loss"].device
        means = torch.stack([value.to(device, torch.float32) for value in values.values()])
        previous = self._sums.get(names)
        # Sums of a resumed epoch come from the checkpoint on the CPU.
        self._sums[names] = means * batch_size if previous is None else previous.to(device).add(means, alpha=batch_size)
        self.samples += batch_size

    def state(self) -> dict[str, Any]:
        """The sums for a checkpoint, on the CPU."""
        return {"sums": [(list(names), sums.cpu()) for names, sums in self._sums.items()], "samples": self.samples}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state`."""
        self._sums, self.samples = {tuple(names): sums for names, sums in state["sums"]}, state["samples"]


def plan_to_plain(plan: EpochPlan) -> dict[str, Any]:
    """A plan as plain data, which ``torch.load(weights_only=True)`` reads."""
    passes = [
        {
            "tag": entry.tag,
            "indices": None if entry.indices is None else torch.tensor(entry.indices, dtype=torch.int64),
            "fresh_optimizer": entry.fresh_optimizer,
        }
        for entry in plan.passes
    ]
    return {"passes": passes, "order": plan.order}


def plan_from_plain(plain: Mapping[str, Any]) -> EpochPlan:
    """The plan of :func:`plan_to_plain`."""
    passes = [
        Pass(
            entry["tag"],
            None if entry["indices"] is None else tuple(entry["indices"].tolist()),
            entry["fresh_optimizer"],
        )
        for entry in plain["passes"]
    ]
    return EpochPlan(tuple(passes), plain["order"])
