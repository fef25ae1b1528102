"""Any number of labels per sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_integer, check_weights
from bmlr.functional import widened
from bmlr.tasks._base import Classification

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@dataclasses.dataclass(frozen=True)
class MultiLabel(Classification):
    """Any number of labels per sample, by binary cross-entropy.

    Targets are 0 and 1, shape (B, L), of a floating-point, integer or boolean type. The loss is the mean over samples
    and labels. The confidence of a sample is the mean over its labels of the probability of what is true: p where the
    label is there, 1 − p where it is not.

    To methods that work on distributions each label is a choice between two classes, absent and there, with the
    probabilities (1 − p, p) and the logits (0, ℓ).

    Args:
        num_labels: Number of labels L, at least 1.
        pos_weight: Weight > 0 of each label where it is there, as in ``torch.nn.BCEWithLogitsLoss``; None is 1.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> task = bmlr.tasks.MultiLabel(2)
        >>> logits, targets = torch.tensor([[4.0, -4.0], [4.0, 4.0]]), torch.tensor([[1, 0], [1, 0]])
        >>> task.confidence(logits, targets), task.predict(logits)
        (tensor([0.9820, 0.5000]), tensor([[1, 0],
                [1, 1]]))
    """

    name: ClassVar[str] = "multilabel"
    primary: ClassVar[str] = "mean_average_precision"

    num_labels: int
    pos_weight: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_integer("num_labels", self.num_labels, 1)
        if self.pos_weight is not None:
            weights = check_weights("pos_weight", self.pos_weight, self.num_labels, "labels")
            object.__setattr__(self, "pos_weight", weights)

    @property
    def num_outputs(self) -> int:
        """Number of labels L."""
        return self.num_labels

    def check_targets(self, targets: Tensor, batch_size: int) -> None:
        """Check for 0 and 1, shape (B, L).

        Raises:
            ValueError: If the targets are anything else.
        """
        shape = (batch_size, self.num_labels)
        if tuple(targets.shape) != shape:
            raise ValueError(
                f"`targets` should have shape {shape}, a 0 or 1 for each label. Found shape {tuple(targets.shape)}."
            )
        if targets.is_complex():
            raise ValueError(f"`targets` should be numbers 0 and 1. Found dtype {targets.dtype}.")
        if targets.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = targets[(targets != 0) & (targets != 1)]
            if len(outside):
                raise ValueError(f"`targets` should hold 0 and 1 only. Found {outside[0].item()}.")

    def choice_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each label, shape (B·L,), of targets or labels in [0, 1], shape (B, L)."""
        logits = widened(logits)
        weights = None
        if self.pos_weight is not None:
            weights = torch.tensor(self.pos_weight, dtype=logits.dtype).to(logits.device, non_blocking=True)
        targets = targets.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
        return losses.flatten()

    def label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross-entropy, shape (B,), of labels in [0, 1], shape (B, L)."""
        return self.per_sample(self.choice_losses(logits, labels))

    def choice_confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Probability of what is true of each label, shape (B·L,)."""
        return torch.where(targets.bool(), widened(logits), -widened(logits)).sigmoid().flatten()

    def predict(self, logits: Tensor) -> Tensor:
        """1 where a label is more probable than not, shape (B, L), int64."""
        return (logits > 0).long()

    def labels(self, targets: Tensor) -> Tensor:
        """The targets, shape (B, L), in floating point."""
        return targets if targets.is_floating_point() else targets.float()

    def metrics(self) -> MetricCollection:
        """Area under the ROC curve, mean average precision and F1, each the mean over the labels."""
        from bmlr.tasks._metrics import multilabel_metrics

        return multilabel_metrics(self.num_labels)

    def constant_score(self, targets: Tensor) -> float:
        """Mean rate of the labels that occur, the average precision of constant probabilities."""
        rates = targets.double().mean(0)
        return float(rates[rates > 0].mean())

    def choice_logits(self, logits: Tensor) -> Tensor:
        """Logits (0, ℓ) of absent and there, shape (B·L, 2)."""
        flat = logits.flatten()
        return torch.stack([torch.zeros_like(flat), flat], 1)

    def choice_targets(self, targets: Tensor) -> Tensor:
        """0 or 1 for each label, shape (B·L,)."""
        return targets.flatten().long()

    def choice_mask(self, mask: Tensor) -> Tensor:
        """The mask of each label's sample, shape (B·L,)."""
        return mask.repeat_interleave(self.num_labels)

    def per_sample(self, values: Tensor) -> Tensor:
        """Mean over the labels of each sample, shape (B,)."""
        return values.view(-1, self.num_labels).mean(1)

    def from_choices(self, labels: Tensor) -> Tensor:
        """Probability that a label is there, shape (B, L)."""
        return labels[:, 1].view(-1, self.num_labels)
