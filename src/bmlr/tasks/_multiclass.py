"""One class of several per sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_integer, check_targets, check_unit_interval, check_weights
from bmlr.functional import log_probabilities, soft_cross_entropy, widened
from bmlr.tasks._base import Classification, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@dataclasses.dataclass(frozen=True)
class Multiclass(Classification):
    """One class of several per sample, by cross-entropy.

    Targets are class indices, shape (B,), or distributions over the classes, shape (B, C), such as those of mixup. The
    confidence is the probability of the true class, for a distribution y the expected one, Σ_c y_c p_c (ours). Loss
    and means are those of ``torch.nn.functional.cross_entropy`` with the same options, save that a batch without any
    target has the loss zero.

    Args:
        num_classes: Number of classes C, at least 2.
        class_weights: Weight > 0 of each class; None weighs all the same. With class indices the mean is divided by
            the weights of the batch.
        label_smoothing: Fraction in [0, 1] of each label that is spread over all classes.
        ignore_index: Class index of samples without a target, such as −100. They add nothing to losses and scores.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> task = bmlr.tasks.Multiclass(3, class_weights=(1.0, 2.0, 2.0))
        >>> logits, targets = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> task.loss(logits, targets), task.confidence(logits, targets)
        (tensor(1.0986), tensor([0.3333, 0.3333]))
    """

    name: ClassVar[str] = "multiclass"
    primary: ClassVar[str] = "accuracy"

    num_classes: int
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes, 2)
        check_unit_interval("label_smoothing", self.label_smoothing)
        if self.class_weights is not None:
            weights = check_weights("class_weights", self.class_weights, self.num_classes, "classes")
            object.__setattr__(self, "class_weights", weights)

    @property
    def num_outputs(self) -> int:
        """Number of classes C."""
        return self.num_classes

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the mean cross-entropy, without any option."""
        return self.class_weights is None and not self.label_smoothing and self.ignore_index is None

    def check_targets(self, targets: Tensor, batch_size: int) -> None:
        """Check for class indices, shape (B,), or distributions, shape (B, C).

        Raises:
            ValueError: If the targets are neither.
        """
        if self.ignore_index is not None and not targets.is_floating_point() and targets.ndim == 1:
            targets = self.choice_targets(targets)
        check_targets(targets, batch_size, self.num_classes, soft=True)

    def has_target(self, targets: Tensor) -> Tensor | None:
        """Samples whose class is not :attr:`ignore_index`."""
        if self.ignore_index is None or targets.is_floating_point():
            return None
        return targets != self.ignore_index

    def loss(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy; see :meth:`bmlr.tasks.Task.loss`."""
        if self.is_plain:
            return soft_cross_entropy(logits, targets, mask=mask)
        return super().loss(logits, targets, mask)

    def label_loss(self, logits: Tensor, labels: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of labels; see :meth:`bmlr.tasks.Task.label_loss`."""
        if self.is_plain:
            return soft_cross_entropy(logits, labels, mask=mask)
        return super().label_loss(logits, labels, targets, mask)

    def choice_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, shape (B,), with the weights of the classes in it."""
        if targets.is_floating_point():
            return self.label_losses(logits, targets)
        losses = F.cross_entropy(
            widened(logits),
            self.choice_targets(targets).long(),
            weight=self._weights(widened(logits)),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        has_target = self.has_target(targets)
        return losses if has_target is None else torch.where(has_target, losses, 0.0)

    def label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of label distributions, shape (B,)."""
        if self.label_smoothing:
            labels = (1 - self.label_smoothing) * labels + self.label_smoothing / self.num_classes
        # A class without mass adds nothing, also where its logit is −∞.
        terms = labels * log_probabilities(logits).masked_fill(labels == 0, 0.0)
        weights = self._weights(terms)
        return -(terms if weights is None else weights * terms).sum(1)

    def average(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the samples that count; with class weights and indices divided by the weights of their classes."""
        weights = self._weights(values)
        if weights is None or targets.is_floating_point():
            return super().average(values, targets, mask)
        of_samples = weights[self.choice_targets(targets).long()]
        if (counted := self.counted(targets, mask)) is not None:
            values, of_samples = torch.where(counted, values, 0.0), torch.where(counted, of_samples, 0.0)
        return values.sum() / of_samples.sum().clamp(min=torch.finfo(values.dtype).tiny)

    def choice_confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Probability of the true class, shape (B,); 0 where there is no target."""
        if targets.is_floating_point():
            return (log_probabilities(logits).exp() * targets).sum(1)
        index = self.choice_targets(targets).long()
        probability = log_probabilities(logits).gather(1, index[:, None]).squeeze(1).exp()
        has_target = self.has_target(targets)
        return probability if has_target is None else torch.where(has_target, probability, 0.0)

    def predict(self, logits: Tensor) -> Tensor:
        """Class with the largest logit, shape (B,)."""
        return logits.argmax(1)

    def labels(self, targets: Tensor) -> Tensor:
        """One-hot labels, shape (B, C), or the given distributions."""
        if targets.is_floating_point():
            return targets
        classes = torch.arange(self.num_classes, device=targets.device)
        # Not F.one_hot, which reads the targets' extremes on the host.
        return (self.choice_targets(targets)[:, None] == classes).float()

    def metrics(self) -> MetricCollection:
        """Accuracy, macro-F1, balanced accuracy, NLL and expected calibration error."""
        from bmlr.tasks._metrics import multiclass_metrics

        return multiclass_metrics(self.num_classes, self.ignore_index)

    def constant_score(self, targets: Tensor) -> float:
        """Fraction of the most frequent class."""
        has_target = self.has_target(targets)
        classes = self.class_indices(targets if has_target is None else targets[has_target])
        return float(torch.bincount(classes, minlength=self.num_classes).max() / len(classes))

    def choice_logits(self, logits: Tensor) -> Tensor:
        """The logits, shape (B, C)."""
        return logits

    def choice_targets(self, targets: Tensor) -> Tensor:
        """Class index of each sample, shape (B,), or distributions (B, C)."""
        has_target = self.has_target(targets)
        return targets if has_target is None else torch.where(has_target, targets, 0)

    def choice_mask(self, mask: Tensor) -> Tensor:
        """The mask, shape (B,)."""
        return mask

    def per_sample(self, values: Tensor) -> Tensor:
        """The values, shape (B,)."""
        return values

    def from_choices(self, labels: Tensor) -> Tensor:
        """The labels, shape (B, C)."""
        return labels

    def _weights(self, like: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, dtype=like.dtype).to(like.device, non_blocking=True)


def as_task(task: Task | int) -> Task:
    """A task, of which an integer is a number of classes.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> as_task(3)
        Multiclass(num_classes=3, class_weights=None, label_smoothing=0.0, ignore_index=None)
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, int):
        return Multiclass(task)
    raise ValueError(
        "`task` should be a number of classes or a task, such as bmlr.tasks.MultiLabel(5). "
        f"Found {getattr(task, '__name__', None) or type(task).__name__}."
    )
