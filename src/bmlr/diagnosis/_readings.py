"""What a model says of every sample, with every subset of its modalities."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer, check_present, check_targets, nearest_name
from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.diagnosis._measures import subsets_of
from bmlr.diagnosis._state import modules_behind
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier, Output

Removal = Literal["absent", "zero", "mean", "shuffle"]
Predict: TypeAlias = Callable[[dict[str, Tensor]], Tensor]
_MOST_MODALITIES = 10  # 2^M − 1 predictions per sample


@dataclasses.dataclass(frozen=True)
class Readings:
    """What a model says of N samples with every subset S of its modalities that is not empty.

    Where a sample lacks a modality, removing it changes nothing; S then stands for what of S the sample has.

    Attributes:
        modalities: Names of the modalities.
        num_classes: Number of classes C.
        targets: Class indices, shape (N,).
        present: Which sample has which modality, boolean, shape (N,) per name.
        predictions: Predicted class with each subset, shape (N,).
        log_probabilities: Log-probability of the true class with each subset, shape (N,), float64.
        unimodal_predictions: Predicted class by each modality's own logits, shape (N,); empty for a model that has
            none.
        unimodal_log_probabilities: Log-probability of the true class by these, shape (N,).
        removal: How modalities were removed, in words.
    """

    modalities: tuple[str, ...]
    num_classes: int
    targets: Tensor
    present: dict[str, Tensor]
    predictions: dict[frozenset[str], Tensor]
    log_probabilities: dict[frozenset[str], Tensor]
    unimodal_predictions: dict[str, Tensor]
    unimodal_log_probabilities: dict[str, Tensor]
    removal: str

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shuffled(self) -> bool:
        """Whether the accuracies alone are by other samples' inputs."""
        return not self.unimodal_predictions and _WORDS["shuffle"] in self.removal

    @property
    def everything(self) -> frozenset[str]:
        """The set of all modalities."""
        return frozenset(self.modalities)

    @functools.cached_property
    def class_rates(self) -> Tensor:
        """Share of each class among the targets, shape (C,), float64."""
        return torch.bincount(self.targets, minlength=self.num_classes).double() / len(self)

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent class."""
        return float(self.class_rates.max())

    def has_any(self, subset: Iterable[str]) -> Tensor:
        """The samples that have at least one modality of the subset, boolean, shape (N,)."""
        return torch.stack([self.present[u] for u in subset]).any(0)

    def can_lose(self, modality: str) -> Tensor:
        """The samples that have the modality and another one, boolean, shape (N,)."""
        return self.present[modality] & self.has_any(self.everything - {modality})

    def alone(self, modality: str) -> tuple[Tensor, Tensor]:
        """Predicted class and log-probability of the true class by the modality alone.

        By its own logits where the model gives such; else with all others removed.
        """
        if modality in self.unimodal_predictions:
            return self.unimodal_predictions[modality], self.unimodal_log_probabilities[modality]
        only = frozenset({modality})
        return self.predictions[only], self.log_probabilities[only]


class Reader(ABC):
    """Gives the logits of a batch with subsets of the modalities.

    Args:
        modalities: Names of the modalities.
        modules: Modules to be read in evaluation mode.
        removal: How modalities are removed, in words.
        device: Where batches are moved; None leaves them.
    """

    def __init__(
        self, modalities: Sequence[str], modules: Sequence[nn.Module], removal: str, device: torch.device | None
    ) -> None:
        self.modalities, self.modules, self.removal, self.device = tuple(modalities), modules, removal, device

    def prepare(self, batch: Batch) -> Batch:
        """The batch where the model is."""
        return batch if self.device is None else batch.to(self.device)

    @abstractmethod
    def read(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits with every subset that is not empty, and unimodal logits if there are any; shape (B, C) each."""


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
    names = _names_of(batches) if modalities is None else modalities
    modules = [*modules_behind(model), *([] if module is None else [module])]
    parameter = next((p for part in modules for p in part.parameters()), None)
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


def check_names(names: Sequence[str]) -> None:
    """Raise a ValueError unless there are 2 to 10 names."""
    if not 2 <= len(names) <= _MOST_MODALITIES or len(set(names)) < len(names):
        raise ValueError(
            f"`modalities` should name 2 to {_MOST_MODALITIES} modalities, each once. Found {list(names)}."
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
        words.insert(0, _WORDS[remove] + (f", mean of {options.draws} draws" if remove == "shuffle" else ""))
    return StandIns(found, "; ".join(words), options.draws if left and remove == "shuffle" else 1)


_WORDS = {
    "zero": "its input replaced by zeros",
    "mean": "its input replaced by the mean input",
    "shuffle": "its input replaced by that of another sample",
}


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
        _check_batch(batch, names, number)
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


def as_batch(batch: Any) -> Batch:
    """A batch of the library from itself or from a pair (inputs by modality, targets).

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(batch, Batch):
        return batch
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Mapping)):
        raise ValueError(
            "`batches` should give bmlr.Batch or pairs (inputs by modality, targets). "
            f"Found {type(batch).__name__}{_contents(batch)}."
        )
    return Batch(dict(batch[0]), torch.as_tensor(batch[1]))


def _contents(batch: Any) -> str:
    return f" of {[type(item).__name__ for item in batch]}" if isinstance(batch, (tuple, list)) else ""


def _names_of(batches: Iterable[Any]) -> list[str]:
    if iter(batches) is batches:
        raise ValueError("`modalities` should be given where `batches` is an iterator.")
    for batch in batches:
        return list(as_batch(batch).inputs)
    raise ValueError("`batches` should hold at least one sample. Found none.")


@torch.no_grad()
def collect(reader: Reader, batches: Iterable[Any]) -> Readings:
    """Read every sample.

    Args:
        reader: How the model is read.
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets).

    Raises:
        ValueError: If there is no sample, or inputs, targets or logits are not what they should be.
    """
    rows = _Rows(reader.modalities)
    with module_mode(*reader.modules, training=False):
        for number, batch in enumerate(map(as_batch, batches)):
            _check_batch(batch, reader.modalities, number)
            rows.add(batch, *reader.read(reader.prepare(batch)), number)
    return rows.joined(reader.removal)


class _Rows:
    """Collects what is kept of every batch, on the CPU."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self.num_classes = 0
        self.targets: list[Tensor] = []
        self.present: dict[str, list[Tensor]] = {u: [] for u in modalities}
        self.predictions: dict[frozenset[str] | str, list[Tensor]] = {}
        self.log_probabilities: dict[frozenset[str] | str, list[Tensor]] = {}

    def add(
        self, batch: Batch, logits: Mapping[frozenset[str], Tensor], unimodal: Mapping[str, Tensor], number: int
    ) -> None:
        """Take in a batch."""
        targets = batch.targets.long().cpu()
        everything: list[tuple[frozenset[str] | str, Tensor]] = [*logits.items(), *unimodal.items()]
        for key, values in everything:
            self._check_logits(key, values, targets, batch, number)
            scores = values.detach().cpu().double().log_softmax(1)
            self.predictions.setdefault(key, []).append(scores.argmax(1))
            self.log_probabilities.setdefault(key, []).append(scores.gather(1, targets[:, None]).squeeze(1))
        self.targets.append(targets)
        for name, masks in self.present.items():
            mask = (batch.present or {}).get(name)
            masks.append(torch.ones(len(targets), dtype=torch.bool) if mask is None else mask.cpu())

    def joined(self, removal: str) -> Readings:
        """The readings of all batches."""
        if not sum(map(len, self.targets)):
            raise ValueError("`batches` should hold at least one sample. Found none.")
        subsets = subsets_of(self.modalities)
        readouts = [u for u in self.modalities if u in self.predictions]
        return Readings(
            self.modalities,
            self.num_classes,
            torch.cat(self.targets),
            {u: torch.cat(masks) for u, masks in self.present.items()},
            {s: torch.cat(self.predictions[s]) for s in subsets},
            {s: torch.cat(self.log_probabilities[s]) for s in subsets},
            {u: torch.cat(self.predictions[u]) for u in readouts},
            {u: torch.cat(self.log_probabilities[u]) for u in readouts},
            removal,
        )

    def _check_logits(self, key: frozenset[str] | str, values: Any, targets: Tensor, batch: Batch, number: int) -> None:
        what = (
            f"of '{key}' alone" if isinstance(key, str) else f"with {', '.join(u for u in self.modalities if u in key)}"
        )
        if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(targets):
            found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"The model should give logits of shape ({len(targets)}, classes). Found {found} {what}.")
        self.num_classes = self.num_classes or values.shape[1]
        if values.shape[1] != self.num_classes or self.num_classes < 2:
            raise ValueError(
                f"The model should give logits of one number of classes, at least 2. Found {values.shape[1]} {what}."
            )
        check_targets(targets, len(values), self.num_classes)
        if bool(values.isnan().any()) or bool(values.isposinf().any()):
            bad = [u for u, x in batch.inputs.items() if x.is_floating_point() and not bool(x.isfinite().all())]
            origin = f"the inputs of {', '.join(bad)} are not finite" if bad else "all inputs are finite"
            raise ValueError(f"The model gives NaN or infinite logits {what} in batch {number}; {origin}.")
        if isinstance(key, frozenset) and len(key) == len(self.modalities) and _are_probabilities(values):
            raise ValueError(
                "The model should give logits. Found numbers in [0, 1] that sum to 1 in every row: if these are "
                "probabilities, return their logarithm."
            )


def _are_probabilities(values: Tensor) -> bool:
    values = values.detach().double()
    inside = bool(((values >= 0) & (values <= 1)).all())
    return inside and bool(((values.sum(1) - 1).abs() < 1e-3).all())


def _check_batch(batch: Batch, modalities: Sequence[str], number: int) -> None:
    if missing := [u for u in modalities if u not in batch.inputs]:
        raise ValueError(
            f"`batches` should hold the modalities {list(modalities)}. Batch {number} lacks {missing} and holds "
            f"{list(batch.inputs)}."
        )
    check_present(batch.present, batch.inputs, len(batch.targets))
