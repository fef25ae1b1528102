"""Replacements for the inputs of removed modalities: zeros, means, other samples, baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from bmlr._checks import check_integer, nearest_name
from bmlr.batch import Batch, as_batch
from bmlr.diagnosis._predictions import check_batch, check_modalities

RemovalMode: TypeAlias = Literal["absent", "zero", "mean", "shuffle"]

#: Maps the inputs of a batch to inputs of the same shape.
Replacement: TypeAlias = Callable[[Tensor], Tensor]

_DESCRIPTIONS = {
    "zero": "its input replaced by zeros",
    "mean": "its input replaced by the mean input",
    "shuffle": "its input replaced by that of another sample",
}


@dataclasses.dataclass(frozen=True)
class RemovalOptions:
    """Removal of a modality from a model's input.

    No mode suits every model. Zeros and means can be unlike any real input. Shuffled inputs are real, but vote for
    their own class: with few draws the accuracy alone of a weak modality is too low.

    Attributes:
        mode: ``absent`` (zero features; models of the library only, their default), ``zero``, ``mean`` (default of
            functions) or ``shuffle`` (inputs of other samples, logits averaged over draws).
        modalities: Modalities of a function; None takes all inputs of the first batch. Other inputs are passed through.
        baselines: Replacement for the input of a modality, of the shape of one sample, by name.
        n_draws: Draws per sample of ``shuffle``.
        pool_size: Samples of each modality kept for ``shuffle``.
    """

    mode: RemovalMode | None = None
    modalities: Sequence[str] | None = None
    baselines: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    n_draws: int = 16
    pool_size: int = 512

    def __post_init__(self) -> None:
        check_integer("n_draws", self.n_draws, 1)
        check_integer("pool_size", self.pool_size, 1)


@dataclasses.dataclass(frozen=True)
class Replacements:
    """A replacement for the input of each modality.

    Attributes:
        by_name: Replacement of each modality.
        description: Description for captions.
        n_draws: Draws per sample, whose logits are averaged.
        shuffles: Inputs are replaced by those of other samples.
    """

    by_name: dict[str, Replacement]
    description: str
    n_draws: int = 1
    shuffles: bool = False


class ConstantInput:
    """One input for all samples."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value

    def __call__(self, inputs: Tensor) -> Tensor:
        try:
            return self.value.to(device=inputs.device, dtype=inputs.dtype).expand_as(inputs)
        except RuntimeError as error:
            raise ValueError(
                f"`baselines['{self.name}']` should have the shape of one sample, {tuple(inputs.shape[1:])}. "
                f"Found {tuple(self.value.shape)}."
            ) from error


class ShuffledInput:
    """Inputs drawn from a pool by a generator of its own."""

    def __init__(self, pool: Tensor, generator: torch.Generator) -> None:
        self.pool, self.generator = pool, generator

    def __call__(self, inputs: Tensor) -> Tensor:
        indices = torch.randint(len(self.pool), (len(inputs),), generator=self.generator)
        return self.pool[indices].to(inputs.device)


def make_replacements(names: Sequence[str], batches: Iterable[Any], options: RemovalOptions, seed: int) -> Replacements:
    """Make the replacements in one pass over the batches."""
    check_modalities(names)
    mode = options.mode or "mean"
    if unknown := [u for u in options.baselines if u not in names]:
        raise ValueError(
            f"`baselines` should name modalities among {list(names)}. Found '{unknown[0]}'."
            f"{nearest_name(unknown[0], names)}"
        )
    by_name: dict[str, Replacement] = {name: ConstantInput(name, value) for name, value in options.baselines.items()}
    remaining = [name for name in names if name not in by_name]
    descriptions = [f"the input of {', '.join(by_name)} replaced by the baseline given"] if by_name else []
    if mode == "zero":
        by_name |= dict.fromkeys(remaining, torch.zeros_like)
    elif remaining:
        by_name |= _gather(remaining, batches, mode, options.pool_size, seed)
    shuffles = mode == "shuffle" and bool(remaining)
    if remaining:
        draws = f", mean of {options.n_draws} draws" if shuffles else ""
        descriptions.insert(0, _DESCRIPTIONS[mode] + draws)
    return Replacements(by_name, "; ".join(descriptions), options.n_draws if shuffles else 1, shuffles)


def _gather(
    names: Sequence[str], batches: Iterable[Any], mode: RemovalMode, pool_size: int, seed: int
) -> dict[str, Replacement]:
    """Means or pools of the inputs, from one pass over the batches."""
    if iter(batches) is batches:
        raise ValueError(
            f"`batches` should be iterable more than once for `mode = {mode!r}`, such as a list or a DataLoader. "
            "Found an iterator."
        )
    generator = torch.Generator().manual_seed(seed)
    statistics = _Means(names) if mode == "mean" else _Pools(names, pool_size, generator)
    for number, batch in enumerate(map(as_batch, batches)):
        check_batch(batch, names, number)
        statistics.update(batch)
    return statistics.replacements()


class _Means:
    """Running means of the inputs, over the samples with the modality."""

    def __init__(self, names: Sequence[str]) -> None:
        self.sums, self.counts = dict[str, Tensor](), dict.fromkeys(names, 0)

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name in self.counts:
            x = _inputs_of(batch, name)
            if not x.is_floating_point():
                raise ValueError(
                    f"`mode = 'mean'` needs floating point inputs. Found {x.dtype} for '{name}': give a baseline for "
                    "it in `baselines`, or mode = 'shuffle'."
                )
            if name in self.sums and self.sums[name].shape != x.shape[1:]:
                _raise_shapes(name, "mean", self.sums[name].shape, x.shape[1:])
            total = x.double().sum(0).cpu() if len(x) else torch.zeros(x.shape[1:], dtype=torch.float64)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] += len(x)

    def replacements(self) -> dict[str, Replacement]:
        """The means."""
        return {name: ConstantInput(name, self.sums[name] / max(count, 1)) for name, count in self.counts.items()}


class _Pools:
    """Uniform samples of the inputs, by reservoirs with random keys."""

    def __init__(self, names: Sequence[str], size: int, generator: torch.Generator) -> None:
        self.names, self.size, self.generator = names, size, generator
        self.pools, self.keys = dict[str, Tensor](), dict[str, Tensor]()

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name in self.names:
            x = _inputs_of(batch, name).cpu()
            keys = torch.rand(len(x), generator=self.generator)
            if name in self.pools:
                if self.pools[name].shape[1:] != x.shape[1:]:
                    _raise_shapes(name, "shuffle", self.pools[name].shape[1:], x.shape[1:])
                x, keys = torch.cat([self.pools[name], x]), torch.cat([self.keys[name], keys])
            # The largest keys of all samples seen so far: a uniform choice, whatever the sizes of the batches.
            kept = keys.topk(min(self.size, len(keys))).indices
            self.pools[name], self.keys[name] = x[kept], keys[kept]

    def replacements(self) -> dict[str, Replacement]:
        """The pools."""
        for name in self.names:
            if not len(self.pools.get(name, ())):
                raise ValueError(f"`batches` should hold samples with every modality. Found none with '{name}'.")
        return {name: ShuffledInput(self.pools[name], self.generator) for name in self.names}


def _inputs_of(batch: Batch, name: str) -> Tensor:
    x: Tensor = batch.inputs[name]
    mask = (batch.present or {}).get(name)
    return x if mask is None else x[mask]


def _raise_shapes(name: str, mode: str, first: torch.Size, second: torch.Size) -> NoReturn:
    raise ValueError(
        f"`mode = {mode!r}` needs inputs of one shape. Found {tuple(first)} and {tuple(second)} for '{name}': give "
        "mode = 'zero'."
    )
