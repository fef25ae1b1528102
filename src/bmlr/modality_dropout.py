"""Modalities left out of samples at random in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bmlr._checks import check_integer, check_modalities, check_unit_interval
from bmlr.batch import Batch
from bmlr.methods import Method

Rates = dict[str, float] | float


class ModalityDropout:
    """Leaves modalities out of the samples of a batch at random.

    Each is left out with its own probability, independently. A sample that would lose all that it has keeps one of
    them, drawn uniformly. What is left out is absent (``Batch.present``): it enters no encoder and no running
    statistics.

    Args:
        rates: Probability that a modality is left out, in [0, 1]: one for all, or by modality, 0 for those left out.
        seed: Seed of the draws.

    Attributes:
        calls: Number of batches so far. With the seed it decides the draws of the next one.

    Raises:
        ValueError: If a rate is not in [0, 1].

    Example:
        >>> import torch, bmlr
        >>> drop = bmlr.ModalityDropout({"audio": 1.0})
        >>> batch = bmlr.Batch({"audio": torch.zeros(2, 4), "text": torch.zeros(2, 3)}, torch.tensor([0, 1]))
        >>> drop(batch).present
        {'audio': tensor([False, False])}
    """

    def __init__(self, rates: Mapping[str, float] | float, seed: int = 0) -> None:
        self.rates = check_rates("rates", rates)
        self.seed = check_integer("seed", seed, 0)
        self.calls = 0

    def __call__(self, batch: Batch) -> Batch:
        """The batch with fewer modalities.

        Raises:
            ValueError: If there is no such modality.
        """
        self.calls += 1
        return self.apply(batch, (self.calls - 1,))

    def apply(self, batch: Batch, position: Sequence[int]) -> Batch:
        """The batch with fewer modalities, as a function of the seed and a position in the training.

        Args:
            batch: The batch.
            position: Non-negative integers, such as epoch, batch and process.
        """
        names = sorted(batch.inputs)  # the draws do not depend on the order of the modalities
        rates = dict.fromkeys(names, self.rates) if isinstance(self.rates, float) else self.rates
        check_modalities("rates", rates, names)
        generator = np.random.default_rng([self.seed, *position])
        dropped = generator.random((len(batch), len(names))) < [rates.get(name, 0.0) for name in names]
        spared = generator.random((len(batch), len(names)))
        given = batch.present or {}
        # Masks that were given may be on a GPU, which is not waited for.
        device = next((mask.device for mask in given.values()), torch.device("cpu"))
        everyone = torch.ones(len(batch), dtype=torch.bool, device=device)
        present = torch.stack([given.get(name, everyone) for name in names], 1)
        kept = present & ~torch.from_numpy(dropped).to(device, non_blocking=True)
        lost = ~kept.any(1) & present.any(1)
        best = torch.from_numpy(spared).to(device, non_blocking=True).masked_fill(~present, -1.0).argmax(1)
        kept = kept | (lost[:, None] & (best[:, None] == torch.arange(len(names), device=device)))
        masks = {name: kept[:, i] for i, name in enumerate(names)}
        return dataclasses.replace(batch, present=masks).to(batch.targets.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Number of batches so far."""
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.calls = int(state["calls"])


def check_rates(argument: str, rates: Mapping[str, float] | float) -> Rates:
    """Rates as floats, those of zero left out.

    Raises:
        ValueError: If one is no number in [0, 1].
    """
    if not isinstance(rates, Mapping):
        return check_unit_interval(argument, rates)
    checked = {name: check_unit_interval(f"{argument}.{name}", rate) for name, rate in rates.items()}
    return {name: rate for name, rate in checked.items() if rate} or 0.0


def check_dropout(argument: str, rates: Rates, modalities: Collection[str], method: Method) -> None:
    """Raise a ValueError if a modality is unknown, or the method needs all of them."""
    check_modalities(argument, rates if isinstance(rates, dict) else (), modalities)
    if rates and method.needs_all_modalities:
        raise ValueError(
            f"{type(method).__name__} needs every modality in every sample: `{argument}` should be 0. Found {rates}."
        )
