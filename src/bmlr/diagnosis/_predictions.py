"""Predictions of a model with every subset of its modalities."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bmlr._checks import check_present, check_targets
from bmlr._modes import module_mode
from bmlr.batch import Batch, as_batch
from bmlr.functional import subsets_of

#: More would take over 1023 forward passes per batch.
_MAX_MODALITIES = 10


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions on N samples with every non-empty subset S of the modalities.

    Removing a modality that a sample lacks changes nothing: S then means the modalities of S that the sample has.

    Attributes:
        modalities: Names of the modalities.
        num_classes: Number of classes C.
        targets: Class indices, shape (N,).
        present: Mask of the samples with each modality, boolean, shape (N,) per name.
        classes: Predicted class with each subset, shape (N,).
        log_probabilities: Log-probability of the true class with each subset, shape (N,), float64.
        unimodal_classes: Predicted class by each modality's unimodal logits, shape (N,); empty for a model without.
        unimodal_log_probabilities: Log-probability of the true class by these, shape (N,).
        removal: Description of the removal, for captions.
        shuffled: Accuracies alone rest on shuffled inputs of the other modalities.
    """

    modalities: tuple[str, ...]
    num_classes: int
    targets: Tensor
    present: dict[str, Tensor]
    classes: dict[frozenset[str], Tensor]
    log_probabilities: dict[frozenset[str], Tensor]
    unimodal_classes: dict[str, Tensor]
    unimodal_log_probabilities: dict[str, Tensor]
    removal: str
    shuffled: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def all_modalities(self) -> frozenset[str]:
        """The set of all modalities."""
        return frozenset(self.modalities)

    @functools.cached_property
    def class_rates(self) -> Tensor:
        """Rate of each class among the targets, shape (C,), float64."""
        return torch.bincount(self.targets, minlength=self.num_classes).double() / len(self)

    @property
    def majority_rate(self) -> float:
        """Rate of the most frequent class."""
        return float(self.class_rates.max())

    def has_any(self, subset: Iterable[str]) -> Tensor:
        """Mask of samples with a modality of the subset, shape (N,)."""
        return torch.stack([self.present[u] for u in subset]).any(0)

    def has_another(self, modality: str) -> Tensor:
        """Mask of samples with this modality and another, shape (N,)."""
        return self.present[modality] & self.has_any(self.all_modalities - {modality})

    def alone(self, modality: str) -> tuple[Tensor, Tensor]:
        """Predictions by one modality.

        They come from its unimodal logits if the model has them; otherwise all other modalities are removed.

        Returns:
            Predicted class and log-probability of the true class, shape (N,) each.
        """
        if modality in self.unimodal_classes:
            return self.unimodal_classes[modality], self.unimodal_log_probabilities[modality]
        only = frozenset({modality})
        return self.classes[only], self.log_probabilities[only]


class SubsetPredictor(ABC):
    """Computes the logits of a batch with every subset of the modalities.

    Args:
        modalities: Names of the modalities.
        modules: Modules to switch to evaluation mode.
        removal: Description of the removal, for captions.
        device: Device of the batches; None leaves them.
        shuffles: Removed inputs are replaced by those of other samples.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        modules: Sequence[nn.Module],
        removal: str,
        device: torch.device | None,
        *,
        shuffles: bool = False,
    ) -> None:
        self.modalities, self.modules, self.removal = tuple(modalities), modules, removal
        self.device, self.shuffles = device, shuffles

    def to_model(self, batch: Batch) -> Batch:
        """The batch on the model's device."""
        return batch if self.device is None else batch.to(self.device)

    @abstractmethod
    def predict_subsets(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits of every non-empty subset, and unimodal logits if any.

        All have shape (B, C).
        """


@torch.no_grad()
def collect_predictions(predictor: SubsetPredictor, batches: Iterable[Any]) -> Predictions:
    """Predict every sample with every subset.

    Args:
        predictor: Computes the logits.
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets).

    Raises:
        ValueError: If there is no sample, or inputs, targets or logits are invalid.
    """
    collector = _Collector(predictor.modalities)
    with module_mode(*predictor.modules, training=False):
        for number, batch in enumerate(map(as_batch, batches)):
            check_batch(batch, predictor.modalities, number)
            collector.add(batch, *predictor.predict_subsets(predictor.to_model(batch)), number)
    return collector.join(predictor.removal, shuffles=predictor.shuffles)


class _Collector:
    """Keeps classes and log-probabilities of every batch on the CPU."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self.num_classes = 0
        self.targets: list[Tensor] = []
        self.present: dict[str, list[Tensor]] = {u: [] for u in modalities}
        # Keyed by subset for multimodal predictions, by modality for unimodal ones.
        self.classes: dict[frozenset[str] | str, list[Tensor]] = {}
        self.log_probabilities: dict[frozenset[str] | str, list[Tensor]] = {}

    def add(
        self, batch: Batch, logits: Mapping[frozenset[str], Tensor], unimodal: Mapping[str, Tensor], number: int
    ) -> None:
        """Add a batch."""
        targets = batch.targets.long().cpu()
        keyed: list[tuple[frozenset[str] | str, Tensor]] = [*logits.items(), *unimodal.items()]
        for key, values in keyed:
            self._check_logits(key, values, targets, batch, number)
            scores = values.detach().cpu().double().log_softmax(1)
            self.classes.setdefault(key, []).append(scores.argmax(1))
            self.log_probabilities.setdefault(key, []).append(scores.gather(1, targets[:, None]).squeeze(1))
        self.targets.append(targets)
        for name, masks in self.present.items():
            mask = (batch.present or {}).get(name)
            masks.append(torch.ones(len(targets), dtype=torch.bool) if mask is None else mask.cpu())

    def join(self, removal: str, *, shuffles: bool) -> Predictions:
        """The predictions of all batches."""
        if not sum(map(len, self.targets)):
            raise ValueError("`batches` should hold at least one sample. Found none.")
        subsets = subsets_of(self.modalities)
        unimodal = [u for u in self.modalities if u in self.classes]
        return Predictions(
            self.modalities,
            self.num_classes,
            torch.cat(self.targets),
            {u: torch.cat(masks) for u, masks in self.present.items()},
            {s: torch.cat(self.classes[s]) for s in subsets},
            {s: torch.cat(self.log_probabilities[s]) for s in subsets},
            {u: torch.cat(self.classes[u]) for u in unimodal},
            {u: torch.cat(self.log_probabilities[u]) for u in unimodal},
            removal,
            shuffled=shuffles and not unimodal,
        )

    def _check_logits(self, key: frozenset[str] | str, values: Any, targets: Tensor, batch: Batch, number: int) -> None:
        source = (
            f"of '{key}' alone" if isinstance(key, str) else f"with {', '.join(u for u in self.modalities if u in key)}"
        )
        if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(targets):
            actual = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"The model should give logits of shape ({len(targets)}, C). Found {actual} {source}.")
        self.num_classes = self.num_classes or values.shape[1]
        if values.shape[1] != self.num_classes or self.num_classes < 2:
            raise ValueError(
                f"The model should give logits of one number of classes, at least 2. Found {values.shape[1]} {source}."
            )
        check_targets(targets, len(values), self.num_classes)
        # −inf is a legitimate logit: a class that is ruled out.
        if bool(values.isnan().any()) or bool(values.isposinf().any()):
            bad = [u for u, x in batch.inputs.items() if x.is_floating_point() and not bool(x.isfinite().all())]
            cause = f"the inputs of {', '.join(bad)} are not finite" if bad else "all inputs are finite"
            raise ValueError(f"The model gives NaN or infinite logits {source} in batch {number}; {cause}.")
        if isinstance(key, frozenset) and len(key) == len(self.modalities) and _are_probabilities(values):
            raise ValueError(
                "The model should give logits. Found numbers in [0, 1] that sum to 1 in every row: if these are "
                "probabilities, return their logarithm."
            )


def _are_probabilities(values: Tensor) -> bool:
    values = values.detach().double()
    inside = bool(((values >= 0) & (values <= 1)).all())
    return inside and bool(((values.sum(1) - 1).abs() < 1e-3).all())


def first_modalities(batches: Iterable[Any]) -> list[str]:
    """Names of the inputs of the first batch."""
    if iter(batches) is batches:
        raise ValueError("`modalities` should be given with an iterator as `batches`: its first batch would be lost.")
    for batch in batches:
        return list(as_batch(batch).inputs)
    raise ValueError("`batches` should hold at least one sample. Found none.")


def check_modalities(names: Sequence[str]) -> None:
    """Raise a ValueError unless there are 2 to 10 different names."""
    if not 2 <= len(names) <= _MAX_MODALITIES or len(set(names)) < len(names):
        raise ValueError(f"`modalities` should name 2 to {_MAX_MODALITIES} modalities, each once. Found {list(names)}.")


def check_batch(batch: Batch, modalities: Sequence[str], number: int) -> None:
    """Raise if a batch lacks a modality or its masks do not fit."""
    if missing := [u for u in modalities if u not in batch.inputs]:
        raise ValueError(
            f"`batches` should hold the modalities {list(modalities)}. Batch {number} lacks {missing} and holds "
            f"{list(batch.inputs)}."
        )
    check_present(batch.present, batch.inputs, len(batch.targets))
