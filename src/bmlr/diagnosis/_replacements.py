"""Replacements for the inputs of removed modalities: zeros, means, other samples, noise, baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from bmlr._checks import check_integer, nearest_name
from bmlr.batch import Batch, as_batch, named_tensors, replace_tensors
from bmlr.diagnosis._predictions import check_batch

RemovalMode: TypeAlias = Literal["absent", "zero", "mean", "shuffle", "noise"]

#: Maps the inputs of a batch to inputs of the same shape.
Replacement: TypeAlias = Callable[[Any], Any]

_DESCRIPTIONS = {
    "zero": "its input replaced by zeros",
    "mean": "its input replaced by the mean input",
    "shuffle": "its input replaced by that of another sample",
    "noise": "its input replaced by noise",
}


@dataclasses.dataclass(frozen=True)
class RemovalOptions:
    """Removal of a modality from a model's input.

    No mode suits every model. Zeros, means and noise can be unlike any real input. Shuffled inputs are real, but vote
    for their own class: with few draws the accuracy alone of a weak modality is too low. An input may be a dictionary
    or tuple of tensors; its masks (boolean, or with "mask" in their name) are replaced by ``shuffle`` alone.

    Attributes:
        mode: ``absent`` (zero features; models of the library only, their default), ``zero``, ``mean`` (default of
            functions), ``shuffle`` (inputs of other samples) or ``noise`` (normal, of the input's mean and standard
            deviation; of integers, such as words, entries drawn from all). Logits are averaged over draws.
        modalities: Modalities of a function; None takes all inputs of the first batch. Other inputs are passed through.
        baselines: Replacement for the input of a modality, of the shape of one sample, by name.
        n_draws: Draws per sample of ``shuffle`` and ``noise``.
        pool_size: Samples of each modality kept for ``shuffle`` and ``noise``.
    """

    mode: RemovalMode | None = None
    modalities: Sequence[str] | None = None
    baselines: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.values = name, list(named_tensors(value).values())

    def __call__(self, inputs: Any) -> Any:
        tensors = list(named_tensors(inputs).values())
        try:
            values = [
                value.to(device=x.device, dtype=x.dtype).expand_as(x)
                for value, x in zip(self.values, tensors, strict=True)
            ]
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"`baselines['{self.name}']` should have the shape of one sample, {_shapes(x[0] for x in tensors)}. "
                f"Found {_shapes(self.values)}."
            ) from error
        return replace_tensors(inputs, values)


class MeanInput(ConstantInput):
    """The mean input; masks stay."""

    def __call__(self, inputs: Any) -> Any:
        named = named_tensors(inputs)
        values = iter(self.values)
        return replace_tensors(
            inputs, [x if is_mask(key, x) else next(values).to(x).expand_as(x) for key, x in named.items()]
        )


class ShuffledInput:
    """Inputs drawn from a pool by a generator of its own, other ones than those they replace."""

    mode: ClassVar[RemovalMode] = "shuffle"

    def __init__(self, pool: Sequence[Tensor], generator: torch.Generator) -> None:
        self.pool, self.generator = pool, generator

    def __call__(self, inputs: Any) -> Any:
        tensors = [x.cpu() for x in named_tensors(inputs).values()]
        count = len(self.pool[0])
        indices = torch.randint(count, (len(tensors[0]),), generator=self.generator)
        equal = [(x == pool[indices]).flatten(1).all(1) for x, pool in zip(tensors, self.pool, strict=True)]
        indices = torch.where(torch.stack(equal).all(0), (indices + 1) % count, indices)
        return replace_tensors(inputs, [pool[indices] for pool in self.pool])


class NoisyInput:
    """Noise of a pool's mean and standard deviation; of integers, entries drawn from all; masks stay."""

    mode: ClassVar[RemovalMode] = "noise"

    def __init__(self, pool: Sequence[Tensor], generator: torch.Generator) -> None:
        self.pool, self.generator = pool, generator

    def __call__(self, inputs: Any) -> Any:
        named = named_tensors(inputs)
        drawn = [
            x if is_mask(key, x) else self._draw(x, pool)
            for (key, x), pool in zip(named.items(), self.pool, strict=True)
        ]
        return replace_tensors(inputs, drawn)

    def _draw(self, x: Tensor, pool: Tensor) -> Tensor:
        if not x.is_floating_point():
            entries = pool.flatten()
            return entries[torch.randint(len(entries), x.shape, generator=self.generator)]
        values = pool.float()
        return values.mean() + values.std() * torch.randn(x.shape, generator=self.generator)


def chosen_inputs(mask: Tensor | None, first: Any, second: Any) -> Any:
    """The first input where the mask of shape (B,) is True, else the second; the first everywhere without a mask."""
    if mask is None:
        return first
    pairs = zip(named_tensors(first).values(), named_tensors(second).values(), strict=True)
    return replace_tensors(
        second, [torch.where(mask.to(x.device).view(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs]
    )


def is_mask(name: str, x: Tensor) -> bool:
    """Whether a tensor of an input of several says which entries of the others count.

    Example:
        >>> import torch
        >>> is_mask("attention_mask", torch.ones(2, 3)), is_mask("input_ids", torch.ones(2, 3))
        (True, False)
    """
    return bool(name) and (x.dtype == torch.bool or "mask" in name)


def make_replacements(names: Sequence[str], batches: Iterable[Any], options: RemovalOptions, seed: int) -> Replacements:
    """Make the replacements in one pass over the batches."""
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
        by_name |= dict.fromkeys(remaining, _zeros)
    elif remaining:
        by_name |= _gather(remaining, batches, mode, options.pool_size, seed)
    is_drawn = mode in {"shuffle", "noise"} and bool(remaining)
    if remaining:
        draws = f", mean of {options.n_draws} draws" if is_drawn else ""
        descriptions.insert(0, _DESCRIPTIONS[mode] + draws)
    n_draws = options.n_draws if is_drawn else 1
    return Replacements(by_name, "; ".join(descriptions), n_draws, is_drawn and mode == "shuffle")


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
    kind = NoisyInput if mode == "noise" else ShuffledInput
    statistics = _Means(names) if mode == "mean" else _Pools(names, pool_size, generator, kind)
    for number, batch in enumerate(map(as_batch, batches)):
        check_batch(batch, names, number)
        statistics.update(batch)
    return statistics.replacements()


class _Means:
    """Running means of the inputs, over the samples with the modality."""

    def __init__(self, names: Sequence[str]) -> None:
        self.sums, self.counts = dict[str, list[Tensor]](), dict.fromkeys(names, 0)

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name in self.counts:
            everything = _inputs_of(batch, name)
            tensors = {key: x for key, x in everything.items() if not is_mask(key, x)}
            for x in tensors.values():
                if not x.is_floating_point():
                    raise ValueError(
                        f"`mode = 'mean'` needs floating point inputs. Found {x.dtype} for '{name}': give a baseline "
                        "for it in `baselines`, or mode = 'shuffle'."
                    )
            sums = [
                x.double().sum(0).cpu() if len(x) else torch.zeros(x.shape[1:], dtype=torch.float64)
                for x in tensors.values()
            ]
            if name in self.sums:
                before = self.sums[name]
                if [x.shape for x in before] != [x.shape for x in sums]:
                    _raise_shapes(name, "mean", before, sums)
                sums = [x + y for x, y in zip(before, sums, strict=True)]
            self.sums[name] = sums
            self.counts[name] += len(next(iter(everything.values())))

    def replacements(self) -> dict[str, Replacement]:
        """The means."""
        return {
            name: MeanInput(name, tuple(x / max(count, 1) for x in self.sums[name]))
            for name, count in self.counts.items()
        }


class _Pools:
    """Uniform samples of the inputs, by reservoirs with random keys."""

    def __init__(
        self,
        names: Sequence[str],
        size: int,
        generator: torch.Generator,
        kind: type[ShuffledInput] | type[NoisyInput],
    ) -> None:
        self.names, self.size, self.generator, self.kind = names, size, generator, kind
        self.pools, self.keys = dict[str, list[Tensor]](), dict[str, Tensor]()

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name in self.names:
            tensors = [x.cpu() for x in _inputs_of(batch, name).values()]
            keys = torch.rand(len(tensors[0]), generator=self.generator)
            if name in self.pools:
                pool = self.pools[name]
                if [x.shape[1:] for x in pool] != [x.shape[1:] for x in tensors]:
                    _raise_shapes(name, self.kind.mode, [x[0] for x in pool], [x[0] for x in tensors])
                tensors = [torch.cat(pair) for pair in zip(pool, tensors, strict=True)]
                keys = torch.cat([self.keys[name], keys])
            # The largest keys of all samples seen so far: a uniform choice, whatever the sizes of the batches.
            kept = keys.topk(min(self.size, len(keys))).indices
            self.pools[name], self.keys[name] = [x[kept] for x in tensors], keys[kept]

    def replacements(self) -> dict[str, Replacement]:
        """The pools."""
        for name in self.names:
            if name not in self.pools or not len(self.pools[name][0]):
                raise ValueError(f"`batches` should hold samples with every modality. Found none with '{name}'.")
        return {name: self.kind(self.pools[name], self.generator) for name in self.names}


def _zeros(inputs: Any) -> Any:
    named = named_tensors(inputs)
    return replace_tensors(inputs, [x if is_mask(key, x) else torch.zeros_like(x) for key, x in named.items()])


def _inputs_of(batch: Batch, name: str) -> dict[str, Tensor]:
    mask = (batch.present or {}).get(name)
    tensors = named_tensors(batch.inputs[name])
    return tensors if mask is None else {key: x[mask] for key, x in tensors.items()}


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


def _raise_shapes(name: str, mode: str, first: Sequence[Tensor], second: Sequence[Tensor]) -> NoReturn:
    raise ValueError(
        f"`mode = {mode!r}` needs inputs of one shape. Found {_shapes(first)} and {_shapes(second)} for '{name}': give "
        "mode = 'zero', or pad all batches to one length."
    )
