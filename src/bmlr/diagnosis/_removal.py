"""Predictions of a model without some of its modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer, nearest_name
from bmlr.batch import Batch, as_batch
from bmlr.diagnosis._measures import subsets_of
from bmlr.diagnosis._readings import WORDS, Predict, Reader, check_batch, check_names, names_of
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.monitor._modules import modules_behind

Removal = Literal["absent", "zero", "mean", "shuffle"]


class FeatureReader(Reader):
    """Removes a modality as the library marks it absent: its features are zero. Encoders run once.

    Args:
        model: The model.
        method: The method it was trained by, whose predictions count; None takes the model's logits.
    """

    def __init__(self, model: MultimodalClassifier, method: Method | None = None) -> None:
        parameter = next(model.parameters())
        super().__init__(
            model.modalities,
            [model] if method is None else [model, method],
            "its features replaced by zero, as for a modality that is absent",
            parameter.device,
        )
        self.model, self.method, self.dtype = model, method, parameter.dtype

    def prepare(self, batch: Batch) -> Batch:
        """The batch where the model is, floating point inputs in its type."""
        return batch.to(self.device or "cpu", dtype=self.dtype)

    def read(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits with every subset, and unimodal logits."""
        output = self.model(batch.inputs, batch.present)
        logits = {}
        for subset in subsets_of(self.modalities):
            kept = {u: z if u in subset else torch.zeros_like(z) for u, z in output.features.items()}
            logits[subset] = self._prediction(output.replace_features(kept)).logits
        return logits, self._prediction(output).unimodal_logits

    def predict(self, batch: Batch) -> Prediction:
        """The prediction on a batch, wherever it is."""
        moved = self.prepare(batch)
        return self._prediction(self.model(moved.inputs, moved.present))

    def _prediction(self, output: Output) -> Prediction:
        if self.method is not None:
            return self.method.predict(output)
        return Prediction(output.logits, output.unimodal_logits)


#: What takes the place of a removed modality's input: a tensor of the same shape from the batch's.
Replacement: TypeAlias = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class StandIns:
    """What takes the place of the inputs of removed modalities.

    Attributes:
        by_name: A replacement per modality.
        words: How to say so.
        draws: Number of draws per sample over which logits are averaged.
    """

    by_name: dict[str, Replacement]
    words: str
    draws: int = 1


class InputReader(Reader):
    """Removes a modality by replacing its input; for any model.

    Args:
        predict: Logits, shape (B, C), from a batch.
        unimodal: Unimodal logits from a batch; None for a model that has none.
        modalities: Names of the modalities; other inputs are handed over as they are.
        modules: Modules to be read in evaluation mode.
        device: Where batches are moved; None leaves them.
        stand_ins: What takes the place of the inputs of removed modalities.
    """

    def __init__(
        self,
        predict: Callable[[Batch], Tensor],
        unimodal: Callable[[Batch], dict[str, Tensor]] | None,
        *,
        modalities: Sequence[str],
        modules: Sequence[nn.Module],
        device: torch.device | None,
        stand_ins: StandIns,
    ) -> None:
        super().__init__(modalities, modules, stand_ins.words, device)
        self.predict, self.unimodal, self.stand_ins = predict, unimodal, stand_ins

    def read(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits with every subset, and unimodal logits if the model has them."""
        drawn = [{u: self._replaced(u, batch) for u in self.modalities} for _ in range(self.stand_ins.draws)]
        logits = {}
        for subset in subsets_of(self.modalities):
            removed = [u for u in self.modalities if u not in subset]
            if not removed:
                logits[subset] = self.predict(batch)
                continue
            logits[subset] = mean_logits(
                [
                    self.predict(dataclasses.replace(batch, inputs={**batch.inputs, **{u: draw[u] for u in removed}}))
                    for draw in drawn
                ]
            )
        return logits, {} if self.unimodal is None else self.unimodal(batch)

    def _replaced(self, name: str, batch: Batch) -> Tensor:
        """Another input for the samples that have the modality; the others keep what stands in their place."""
        inputs = batch.inputs[name]
        other = self.stand_ins.by_name[name](inputs)
        mask = (batch.present or {}).get(name)
        return other if mask is None else torch.where(mask.view(-1, *[1] * (inputs.ndim - 1)), other, inputs)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Mean over several predictions of the same samples in log space (their normalised geometric mean), shape (B, C).

    The arithmetic mean of probabilities would keep the vote of every stand-in for one class or another; in log space
    the votes of a strong modality's stand-ins cancel out, which leaves what the other modality says.

    Example:
        >>> import torch
        >>> mean_logits([torch.tensor([[4.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 3.0]])]).argmax(1)
        tensor([2])
    """
    return logits[0] if len(logits) == 1 else torch.stack([values.double() for values in logits]).mean(0)


@dataclasses.dataclass(frozen=True)
class RemovalOptions:
    """How a modality is removed; see :func:`bmlr.diagnosis.diagnose`.

    Attributes:
        remove: absent, zero, mean or shuffle; None takes the model's default.
        baselines: Stand-in for the input of a modality, by name.
        draws: Draws per sample of shuffle.
        pool: Samples of each modality kept for shuffle.
        seed: Seed of pool and draws.
    """

    remove: Removal | None = None
    baselines: Mapping[str, Tensor] | None = None
    draws: int = 16
    pool: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("draws", self.draws, 1)
        check_integer("pool", self.pool, 1)


def make_reader(
    model: MultimodalClassifier | Predict,
    batches: Iterable[Any],
    options: RemovalOptions | None = None,
    *,
    method: Method | None = None,
    modalities: Sequence[str] | None = None,
    module: nn.Module | None = None,
) -> Reader:
    """The reader of a model; see :func:`bmlr.diagnosis.diagnose` for the arguments.

    Raises:
        ValueError: If an argument does not fit the model or the batches.
    """
    options = options or RemovalOptions()
    if isinstance(model, MultimodalClassifier):
        if module is not None:
            raise ValueError("`module` is for a model that is given as a function. Found it with a model of bmlr.")
        if modalities is not None and set(modalities) != set(model.modalities):
            raise ValueError(
                f"`modalities` should be those of the model, {list(model.modalities)}, or be left out. "
                f"Found {list(modalities)}."
            )
        return _classifier_reader(FeatureReader(model, method), batches, options)
    if not callable(model):
        raise ValueError(
            "`model` should be a bmlr.MultimodalClassifier or a function from inputs to logits. "
            f"Found {type(model).__name__}."
        )
    if method is not None:
        raise ValueError("`method` goes with a bmlr.MultimodalClassifier. Found a model given as a function.")
    check_choice("remove", options.remove or "mean", ("zero", "mean", "shuffle"))
    names = names_of(batches) if modalities is None else modalities
    modules = [*modules_behind(model), *([] if module is None else [module])]
    parameter = next((p for module in modules for p in module.parameters()), None)
    return InputReader(
        lambda batch: model(dict(batch.inputs)),
        None,
        modalities=names,
        modules=modules,
        device=None if parameter is None else parameter.device,
        stand_ins=_stand_ins(names, batches, options),
    )


def _classifier_reader(reader: FeatureReader, batches: Iterable[Any], options: RemovalOptions) -> Reader:
    """The reader itself, or one that replaces inputs."""
    remove = check_choice("remove", options.remove or "absent", ("absent", "zero", "mean", "shuffle"))
    check_names(reader.modalities)
    if remove == "absent":
        if options.baselines:
            raise ValueError("`baselines` replace inputs: give `remove` = 'zero', 'mean' or 'shuffle' with them.")
        return reader
    return InputReader(
        lambda batch: reader.predict(batch).logits,
        lambda batch: reader.predict(batch).unimodal_logits,
        modalities=reader.modalities,
        modules=reader.modules,
        device=reader.device,
        stand_ins=_stand_ins(reader.modalities, batches, options),
    )


class _Constant:
    """The same input for every sample."""

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


class _Shuffled:
    """The inputs of other samples, from a pool of them; drawn with a generator of its own."""

    def __init__(self, pool: Tensor, generator: torch.Generator) -> None:
        self.pool, self.generator = pool, generator

    def __call__(self, inputs: Tensor) -> Tensor:
        chosen = torch.randint(len(self.pool), (len(inputs),), generator=self.generator)
        return self.pool[chosen].to(inputs.device)


def _stand_ins(names: Sequence[str], batches: Iterable[Any], options: RemovalOptions) -> StandIns:
    check_names(names)
    baselines, remove = options.baselines or {}, options.remove or "mean"
    if unknown := [u for u in baselines if u not in names]:
        raise ValueError(
            f"`baselines` should name modalities among {list(names)}. Found '{unknown[0]}'."
            f"{nearest_name(unknown[0], names)}"
        )
    found: dict[str, Replacement] = {name: _Constant(name, value) for name, value in baselines.items()}
    left = [name for name in names if name not in found]
    words = [] if not found else [f"the input of {', '.join(found)} replaced by the baseline given"]
    if remove == "zero":
        found |= dict.fromkeys(left, torch.zeros_like)
    elif left:
        found |= _gathered(left, batches, remove, options)
    if left:
        words.insert(0, WORDS[remove] + (f", mean of {options.draws} draws" if remove == "shuffle" else ""))
    return StandIns(found, "; ".join(words), options.draws if left and remove == "shuffle" else 1)


def _gathered(
    names: Sequence[str], batches: Iterable[Any], remove: str, options: RemovalOptions
) -> dict[str, Replacement]:
    """Means or other samples, by a pass over the batches."""
    if iter(batches) is batches:
        raise ValueError(
            f"`batches` should be iterable more than once for `remove = {remove!r}`, such as a list or a DataLoader. "
            "Found an iterator."
        )
    generator = torch.Generator().manual_seed(options.seed)
    statistics = _Means(names) if remove == "mean" else _Pools(names, options.pool, generator)
    for number, batch in enumerate(map(as_batch, batches)):
        check_batch(batch, names, number)
        statistics.update(batch)
    return statistics.replacements()


class _Means:
    """Running mean of the inputs of each modality, over the samples that have it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.sums, self.counts = dict[str, Tensor](), dict.fromkeys(names, 0)

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name in self.counts:
            x = _inputs_of(batch, name)
            if not x.is_floating_point():
                raise ValueError(
                    f"`remove = 'mean'` needs floating point inputs. Found {x.dtype} for '{name}': give a baseline for "
                    "it in `baselines`, or remove = 'shuffle'."
                )
            if name in self.sums and self.sums[name].shape != x.shape[1:]:
                _shapes_differ(name, "mean", self.sums[name].shape, x.shape[1:])
            total = x.double().sum(0).cpu() if len(x) else torch.zeros(x.shape[1:], dtype=torch.float64)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] += len(x)

    def replacements(self) -> dict[str, Replacement]:
        """The means."""
        return {name: _Constant(name, self.sums[name] / max(count, 1)) for name, count in self.counts.items()}


class _Pools:
    """An even sample of the inputs of each modality, over the samples that have it (reservoir by random keys)."""

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
                    _shapes_differ(name, "shuffle", self.pools[name].shape[1:], x.shape[1:])
                x, keys = torch.cat([self.pools[name], x]), torch.cat([self.keys[name], keys])
            kept = keys.topk(min(self.size, len(keys))).indices
            self.pools[name], self.keys[name] = x[kept], keys[kept]

    def replacements(self) -> dict[str, Replacement]:
        """The pools."""
        for name in self.names:
            if not len(self.pools.get(name, ())):
                raise ValueError(f"`batches` should hold samples with every modality. Found none with '{name}'.")
        return {name: _Shuffled(self.pools[name], self.generator) for name in self.names}


def _inputs_of(batch: Batch, name: str) -> Tensor:
    x = batch.inputs[name]
    mask = (batch.present or {}).get(name)
    return x if mask is None else x[mask]


def _shapes_differ(name: str, remove: str, first: torch.Size, second: torch.Size) -> None:
    raise ValueError(
        f"`remove = {remove!r}` needs inputs of one shape. Found {tuple(first)} and {tuple(second)} for '{name}': give "
        "remove = 'zero'."
    )
