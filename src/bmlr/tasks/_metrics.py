"""Metrics of torchmetrics, updated with logits and targets of a task."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers import LambdaInputTransformer

#: Class of samples that a metric is to leave out.
_LEFT_OUT = -1


class _Share(LambdaInputTransformer):
    """A mean of values in [0, 1], which rounding could put above 1."""

    def compute(self) -> Tensor:
        score: Tensor = torch.clamp(cast("Tensor", super().compute()), max=1)
        return score


def multiclass_metrics(num_classes: int, ignore_index: int | None) -> MetricCollection:
    """Metrics of classes."""
    left_out = _Ignoring(ignore_index)
    accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=_LEFT_OUT, validate_args=False)
    f1 = MulticlassF1Score(num_classes, average="macro", ignore_index=_LEFT_OUT, validate_args=False)
    calibration = MulticlassCalibrationError(num_classes, n_bins=15, ignore_index=_LEFT_OUT, validate_args=False)
    return _collect(
        {
            "accuracy": LambdaInputTransformer(accuracy, _largest, left_out),
            "macro_f1": _Share(f1, _largest, left_out),
            "balanced_accuracy": LambdaInputTransformer(BalancedAccuracy(num_classes), _largest, left_out),
            "nll": NegativeLogLikelihood(ignore_index),
            "ece": LambdaInputTransformer(calibration, _softmax, left_out),
        }
    )


def multilabel_metrics(num_labels: int) -> MetricCollection:
    """Metrics of labels."""
    f1 = MultilabelF1Score(num_labels, average="macro", validate_args=False)
    return _collect(
        {
            "auroc": LabelMean(num_labels, binary_auroc, needs_absence=True),
            "mean_average_precision": LabelMean(num_labels, binary_average_precision),
            "macro_f1": _Share(f1, _sigmoid, Tensor.long),
        }
    )


def regression_metrics(num_outputs: int) -> MetricCollection:
    """Metrics of numbers."""
    columns = _Columns(num_outputs)
    return _collect(
        {
            "mae": LambdaInputTransformer(MeanAbsoluteError(), columns, columns),
            "rmse": LambdaInputTransformer(MeanSquaredError(squared=False), columns, columns),
            "pearson": LambdaInputTransformer(MeanCorrelation(num_outputs), columns, columns),
        }
    )


def sentiment_metrics() -> MetricCollection:
    """Metrics of sentiment from −3 to 3."""
    numbers = _Columns(1)
    f1 = {
        convention: MulticlassF1Score(2, average="weighted", ignore_index=_LEFT_OUT, validate_args=False)
        for convention in ("nonnegative", "positive")
    }
    accuracy = {convention: BinaryAccuracy(ignore_index=_LEFT_OUT, validate_args=False) for convention in f1}
    seven = MulticlassAccuracy(7, average="micro", validate_args=False)
    return _collect(
        {
            "acc2_nonnegative": LambdaInputTransformer(accuracy["nonnegative"], _is_nonnegative, _is_nonnegative),
            "acc2_positive": LambdaInputTransformer(accuracy["positive"], _is_positive, _is_positive_or_left_out),
            "f1_nonnegative": LambdaInputTransformer(f1["nonnegative"], _is_nonnegative, _is_nonnegative),
            "f1_positive": LambdaInputTransformer(f1["positive"], _is_positive, _is_positive_or_left_out),
            "acc7": LambdaInputTransformer(seven, _rounded, _rounded),
            "mae": LambdaInputTransformer(MeanAbsoluteError(), numbers, numbers),
            "pearson": LambdaInputTransformer(MeanCorrelation(1), numbers, numbers),
        }
    )


class BalancedAccuracy(Metric):
    """Mean recall over the classes that occur; torchmetrics counts a class that is only predicted as zero."""

    hits: Tensor
    support: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("hits", "support"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predicted and true classes, shape (B,)."""
        kept = targets != _LEFT_OUT
        predictions, targets = predictions[kept], targets[kept]
        self.support += targets.bincount(minlength=len(self.support))
        self.hits += targets[predictions == targets].bincount(minlength=len(self.hits))

    def compute(self) -> Tensor:
        """The mean; NaN without samples."""
        recall: Tensor = (self.hits.double() / self.support)[self.support > 0].mean()
        return recall


class NegativeLogLikelihood(Metric):
    """Mean negative log-likelihood of the true classes, or cross-entropy of label distributions."""

    total: Tensor
    count: Tensor

    def __init__(self, ignore_index: int | None) -> None:
        super().__init__()
        self.left_out = _Ignoring(ignore_index)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits, shape (B, C), and targets."""
        if targets.is_floating_point():
            losses = F.cross_entropy(logits.float(), targets.float(), reduction="none")
            self.count += len(targets)
        else:
            classes = self.left_out(targets)
            losses = F.cross_entropy(logits.float(), classes, reduction="none", ignore_index=_LEFT_OUT)
            self.count += (classes != _LEFT_OUT).sum()
        self.total += losses.double().sum()

    def compute(self) -> Tensor:
        """The mean; NaN without samples."""
        mean: Tensor = self.total / self.count
        return mean


class LabelMean(Metric):
    """Mean over labels of a metric of one label; NaN without any usable one.

    A label that is never there says nothing, nor, for some metrics, one that always is. torchmetrics counts it as zero.
    """

    probabilities: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self, num_labels: int, metric: Callable[[Tensor, Tensor], Tensor], *, needs_absence: bool = False
    ) -> None:
        super().__init__()
        self.num_labels, self.metric, self.needs_absence = num_labels, metric, needs_absence
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits and targets, shape (B, L)."""
        # Flat and of one type: those of a process without samples are so, in the exchange of distributed training.
        self.probabilities.append(_sigmoid(logits).flatten())
        self.targets.append(targets.float().flatten())

    def compute(self) -> Tensor:
        """The mean over the usable labels."""
        probabilities = dim_zero_cat(self.probabilities).view(-1, self.num_labels)
        targets = dim_zero_cat(self.targets).view(-1, self.num_labels).long()
        usable = targets.amax(0) == 1
        if self.needs_absence:
            usable &= targets.amin(0) == 0
        values = [self.metric(probabilities[:, i], targets[:, i]) for i in usable.nonzero().flatten().tolist()]
        return torch.stack(values).mean() if values else probabilities.new_tensor(torch.nan)


class MeanCorrelation(PearsonCorrCoef):
    """Pearson's correlation, the mean over the outputs; NaN where predictions or targets are constant."""

    def compute(self) -> Tensor:
        """The mean correlation."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant predictions, as of a model that is not trained yet
            return super().compute().mean()


class _Ignoring:
    """Class indices, also of distributions, with those to ignore marked."""

    def __init__(self, ignore_index: int | None) -> None:
        self.ignore_index = ignore_index

    def __call__(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return targets.argmax(1)
        classes = targets.long()
        return classes if self.ignore_index is None else classes.masked_fill(classes == self.ignore_index, _LEFT_OUT)


class _Columns:
    """Numbers of shape (B,) for one output, else (B, K)."""

    def __init__(self, num_outputs: int) -> None:
        self.num_outputs = num_outputs

    def __call__(self, values: Tensor) -> Tensor:
        return values.float().reshape(-1) if self.num_outputs == 1 else values.float()


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(1)


# Given logits that happen to lie in [0, 1], the metrics themselves would take them for probabilities.
def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)


def _sigmoid(logits: Tensor) -> Tensor:
    return logits.float().sigmoid()


def _is_nonnegative(values: Tensor) -> Tensor:
    return (values.flatten() >= 0).long()


def _is_positive(values: Tensor) -> Tensor:
    return (values.flatten() > 0).long()


def _is_positive_or_left_out(targets: Tensor) -> Tensor:
    return _is_positive(targets).masked_fill(targets.flatten() == 0, _LEFT_OUT)


def _rounded(values: Tensor) -> Tensor:
    return values.flatten().float().clamp(-3, 3).round().long() + 3


def _collect(metrics: Mapping[str, Metric]) -> MetricCollection:
    # Without groups: torchmetrics joins metrics whose states are equal after the first batch, as those of both
    # conventions are in a batch without a score of zero.
    return MetricCollection(dict(metrics), compute_groups=False)
