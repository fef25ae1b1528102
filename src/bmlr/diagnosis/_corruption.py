"""Corrupted batches: modalities taken away at a rate, or under noise of a level."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_non_negative, check_unit_interval
from bmlr.batch import Batch, as_batch, map_tensors, tensors_of


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Which samples lose a modality, and how much noise is added to one.

    Draws depend on the seed, the modality and the sample's position alone: batches of another size change nothing, and
    what is missing at one rate is missing at every larger one.

    Attributes:
        missing: Rate in [0, 1] at which samples lose the modality, by name.
        noise: Standard deviation ≥ 0 of normal noise, in units of that of the modality's input, by name.
    """

    missing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rate in self.missing.items():
            check_unit_interval(f"missing['{name}']", rate)
        for name, level in self.noise.items():
            check_non_negative(f"noise['{name}']", level)

    @property
    def effective(self) -> Corruption:
        """The same without rates and levels of zero, which change nothing."""
        return Corruption({u: x for u, x in self.missing.items() if x}, {u: x for u, x in self.noise.items() if x})

    def __str__(self) -> str:
        parts = [f"{name} missing in {100 * rate:g} %" for name, rate in self.missing.items()]
        return ", ".join([*parts, *(f"noise of {level:g} std on {name}" for name, level in self.noise.items())])

    def with_noise(self, batch: Batch, positions: Sequence[int], scales: Mapping[str, list[float]], seed: int) -> Batch:
        """The batch with noise in its inputs."""
        inputs = dict(batch.inputs)
        for name, level in self.noise.items():
            if not level:
                continue
            scale_of = iter(scales[name])
            draws = [_generator(seed, name, position, "noise") for position in positions]

            def add(
                x: Tensor, level: float = level, scale_of: Any = scale_of, draws: list[np.random.Generator] = draws
            ) -> Tensor:
                if not x.is_floating_point():
                    return x
                noise = np.stack([draw.standard_normal(x.shape[1:], dtype=np.float32) for draw in draws])
                added = torch.from_numpy(noise).to(x) * (level * next(scale_of))
                return torch.where(_is_padding(x), x, x + added)

            inputs[name] = map_tensors(add, inputs[name])
        return dataclasses.replace(batch, inputs=inputs)

    def kept(self, batch: Batch, positions: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Mask of the samples that keep each modality of :attr:`missing`, boolean, shape (B,)."""
        return {name: _kept(name, rate, positions, seed) for name, rate in self.missing.items()}


def _kept(name: str, rate: float, positions: Sequence[int], seed: int) -> Tensor:
    if rate in {0.0, 1.0}:  # whatever is drawn, and a draw per sample costs more than its prediction
        return torch.full((len(positions),), rate == 0.0)
    return torch.tensor([_generator(seed, name, i, "missing").random() >= rate for i in positions])


def input_scales(batches: Iterable[Any], names: Iterable[str]) -> dict[str, list[float]]:
    """Standard deviation of the entries of each floating-point tensor of a modality's input.

    One number per tensor, over all entries of all samples that have the modality; padding of sequences is left out.

    Raises:
        ValueError: If a modality has no floating-point input, or no sample has it.
    """
    # Count, sum and sum of squares of each tensor.
    sums: dict[str, list[list[float]]] = {name: [] for name in names}
    for batch in map(as_batch, batches):
        for name, totals in sums.items():
            mask = (batch.present or {}).get(name)
            tensors = [x for x in tensors_of(batch.inputs[name]) if x.is_floating_point()]
            if not tensors:
                raise ValueError(
                    f"Noise needs floating-point inputs. '{name}' has none: take it away at a rate instead."
                )
            totals += [[0.0, 0.0, 0.0] for _ in tensors[len(totals) :]]
            for total, x in zip(totals, tensors, strict=True):
                present = x if mask is None else x[mask.to(x.device)]
                values = present[~_is_padding(present).expand_as(present)].double()
                for i, value in enumerate((values.numel(), float(values.sum()), float(values.square().sum()))):
                    total[i] += value
    scales = {}
    for name, totals in sums.items():
        if not totals or any(not count for count, *_ in totals):
            raise ValueError(f"No sample has '{name}': the scale of its noise is not known.")
        scales[name] = [max(square / count - (total / count) ** 2, 0.0) ** 0.5 for count, total, square in totals]
    return scales


def _is_padding(x: Tensor) -> Tensor:
    """Time steps of sequences (B, T, d) whose features are all zero, (B, T, 1); none of other inputs."""
    if x.ndim == 3:
        return (x == 0).all(2, keepdim=True)
    return torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)


def _generator(seed: int, name: str, position: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, position, zlib.crc32(f"{purpose} {name}".encode())])
