"""Interface of a task."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bmlr.functional import masked_mean
from bmlr.tasks._forms import metric_form

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@dataclasses.dataclass(frozen=True)
class Task(ABC):
    """What the targets of a model are.

    A task says how targets become a loss, a confidence, a prediction and metrics. ``logits`` are a model's outputs, of
    shape (B, :attr:`num_outputs`).

    Example:
        >>> import bmlr
        >>> [task.name for task in (bmlr.tasks.Multiclass(3), bmlr.tasks.MultiLabel(5), bmlr.tasks.Sentiment())]
        ['multiclass', 'multilabel', 'regression']
    """

    #: ``multiclass``, ``multilabel`` or ``regression``; methods say for which of them they are defined.
    name: ClassVar[str]
    #: Metric by which runs are compared and epochs chosen.
    primary: ClassVar[str]

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger value of the primary metric is better."""
        return metric_form(self.primary).larger_is_better

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Width of the logits."""

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @abstractmethod
    def check_targets(self, targets: Tensor, batch_size: int) -> None:
        """Check type, shape and, on the CPU, values.

        Raises:
            ValueError: If the targets are none of this task.
        """

    @abstractmethod
    def sample_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, shape (B,), in float32 or wider."""

    @abstractmethod
    def confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Confidence in the target, shape (B,), in [0, 1]; 1 is a certain and right prediction."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Prediction of each sample, in the form of the targets."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Metrics by name, updated with logits and targets.

        They need torchmetrics, which comes with the extra ``train``.
        """

    @abstractmethod
    def labels(self, targets: Tensor) -> Tensor:
        """Targets as floating-point labels of the shape of the logits."""

    @abstractmethod
    def label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample, shape (B,), from labels of the shape of the logits."""

    @abstractmethod
    def constant_score(self, targets: Tensor) -> float:
        """Primary metric of the best constant prediction for these targets."""

    def has_target(self, targets: Tensor) -> Tensor | None:
        """Samples with a target, boolean, shape (B,); None for all."""
        return None

    def counted(self, targets: Tensor, mask: Tensor | None) -> Tensor | None:
        """Samples of ``mask`` that have a target, shape (B,); None for all."""
        return joint_mask(mask, self.has_target(targets))

    def average(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean of sample losses, shape (B,), over the samples of ``mask`` that have a target; zero without any."""
        return masked_mean(values, self.counted(targets, mask))

    def loss(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss.

        Args:
            logits: Outputs of the model, shape (B, :attr:`num_outputs`).
            targets: Targets of the task.
            mask: Boolean, shape (B,): samples that count; None counts all. Others get no gradient, whatever their
                logits are.

        Returns:
            A scalar, in float32 or wider; zero where no sample counts.
        """
        return self.average(self.sample_losses(_masked(logits, mask), targets), targets, mask)

    def label_loss(self, logits: Tensor, labels: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss from labels, such as reshaped ones, averaged as :meth:`loss` does.

        Args:
            logits: Outputs of the model, shape (B, :attr:`num_outputs`).
            labels: Labels of the same shape.
            targets: Targets of the task, which say what counts how much.
            mask: Samples that count, as in :meth:`loss`.
        """
        return self.average(self.label_losses(_masked(logits, mask), labels), targets, mask)

    def whole_predictions(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unimodal logits, shape (B, :attr:`num_outputs`), from the terms of a sum over modalities.

        Logits have no scale, so that each term is a prediction as it is.
        """
        return terms


class Classification(Task):
    """A task of choices among classes.

    Several classes are one choice per sample. Several labels are one choice between two classes per label. Methods that
    work on distributions over classes see one row per choice, (N, C).
    """

    @abstractmethod
    def choice_logits(self, logits: Tensor) -> Tensor:
        """Logits of each choice, shape (N, C)."""

    @abstractmethod
    def choice_targets(self, targets: Tensor) -> Tensor:
        """Class index of each choice, shape (N,), or distributions (N, C); any class where there is no target."""

    @abstractmethod
    def choice_mask(self, mask: Tensor) -> Tensor:
        """Mask of samples, shape (B,), as one of choices, shape (N,)."""

    @abstractmethod
    def per_sample(self, values: Tensor) -> Tensor:
        """Mean over the choices of each sample, shape (B,), of values of shape (N,)."""

    @abstractmethod
    def from_choices(self, labels: Tensor) -> Tensor:
        """Labels of the shape of the logits, from distributions of choices, shape (N, C)."""

    @abstractmethod
    def choice_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each choice, shape (N,)."""

    @abstractmethod
    def choice_confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Probability of what is true of each choice, shape (N,)."""

    def sample_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each sample's choices, shape (B,)."""
        return self.per_sample(self.choice_losses(logits, targets))

    def confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean probability of what is true of each sample, shape (B,)."""
        return self.per_sample(self.choice_confidence(logits, targets))

    def class_indices(self, targets: Tensor) -> Tensor:
        """Class of each choice, shape (N,); the most probable one of a distribution."""
        choices = self.choice_targets(targets)
        return choices.argmax(1) if choices.ndim == 2 else choices.long()


def joint_mask(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Samples in both masks; None is all."""
    if first is None or second is None:
        return first if second is None else second
    return first & second


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else torch.where(mask[:, None], logits, 0.0)
