"""What a model says of every sample, with every subset of its modalities."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_present, check_targets
from bmlr._modes import module_mode
from bmlr.batch import Batch, as_batch
from bmlr.diagnosis._measures import subsets_of

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
        return not self.unimodal_predictions and WORDS["shuffle"] in self.removal

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


def check_names(names: Sequence[str]) -> None:
    """Raise a ValueError unless there are 2 to 10 names."""
    if not 2 <= len(names) <= _MOST_MODALITIES or len(set(names)) < len(names):
        raise ValueError(
            f"`modalities` should name 2 to {_MOST_MODALITIES} modalities, each once. Found {list(names)}."
        )


WORDS = {
    "zero": "its input replaced by zeros",
    "mean": "its input replaced by the mean input",
    "shuffle": "its input replaced by that of another sample",
}


def names_of(batches: Iterable[Any]) -> list[str]:
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
            check_batch(batch, reader.modalities, number)
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


def check_batch(batch: Batch, modalities: Sequence[str], number: int) -> None:
    if missing := [u for u in modalities if u not in batch.inputs]:
        raise ValueError(
            f"`batches` should hold the modalities {list(modalities)}. Batch {number} lacks {missing} and holds "
            f"{list(batch.inputs)}."
        )
    check_present(batch.present, batch.inputs, len(batch.targets))
