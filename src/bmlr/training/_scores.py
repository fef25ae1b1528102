"""Accuracy of the fused and the unimodal predictions, and their ratios."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.tasks import Classification, Task, joint_mask


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy and balance of a model on one split of the data.

    Attributes:
        accuracy: Fraction of samples whose class has the largest fused logit; of several labels the fraction that is
            predicted right; NaN for numbers.
        unimodal_accuracy: The same for the logits of each modality, over the samples that have it.
        samples: Number of samples.
        metrics: Metrics of the task, by name, of ``fused`` and each modality; empty for classes.
    """

    accuracy: float
    unimodal_accuracy: dict[str, float]
    samples: int
    metrics: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> dict[str, float | None]:
        """Accuracy ratio of every pair of modalities, keyed ``audio/image``.

        1 is balanced. None where the denominator is zero.
        """
        return {
            f"{a}/{b}": self.unimodal_accuracy[a] / self.unimodal_accuracy[b] if self.unimodal_accuracy[b] else None
            for a, b in itertools.combinations(self.unimodal_accuracy, 2)
        }

    def as_dict(self) -> dict[str, object]:
        """The score as plain data, for ``result.json``."""
        return {
            "accuracy": self.accuracy,
            "unimodal_accuracy": self.unimodal_accuracy,
            "ratio": self.ratio,
            "samples": self.samples,
            **({"metrics": self.metrics} if self.metrics else {}),
        }


def merit(score: Mapping[str, Any], task: Task) -> float:
    """Number by which epochs are chosen, larger for a better score; −∞ if it is NaN.

    It is the accuracy of classes, and the primary metric of other tasks, with its sign turned where smaller is better.

    Args:
        score: A score as plain data.
        task: The task it is of.
    """
    if not score.get("metrics"):
        return float(score["accuracy"])
    value = score["metrics"]["fused"][task.primary]
    if value is None or math.isnan(value):
        return -math.inf
    return float(value) if task.larger_is_better else -float(value)


class ScoreMetric(nn.Module):
    """Running score over batches; in distributed training :meth:`compute` takes in all processes.

    Args:
        modalities: Names of the modalities.
        task: What the targets are.
    """

    def __init__(self, modalities: Sequence[str], task: Task) -> None:
        super().__init__()
        self.modalities, self.task = tuple(modalities), task
        # A prefix: the names of modules may not be those of attributes, such as "train", which a modality may have.
        self._means = nn.ModuleDict({f"accuracy_{name}": MeanMetric() for name in ("fused", *self.modalities)})
        # Accuracy is all that is asked of classes here: further metrics of every batch would cost time.
        metrics = {} if task.name == "multiclass" else {name: task.metrics() for name in ("fused", *self.modalities)}
        self._metrics = nn.ModuleDict({f"metrics_{name}": collection for name, collection in metrics.items()})
        self._samples = SumMetric()
        self.reset()

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Add a batch."""
        self._add("fused", prediction.logits, batch.targets, None)
        for name, logits in prediction.unimodal_logits.items():
            self._add(name, logits, batch.targets, (batch.present or {}).get(name))
        self._samples.update(len(batch))

    def compute(self) -> Score:
        """The score so far; NaN for a modality without samples."""
        values = {name: float(self._mean(name).compute()) for name in ("fused", *self.modalities)}
        metrics = {name: self._compute_metrics(name, math.isnan(mean)) for name, mean in values.items()}
        if not isinstance(self.task, Classification):
            values = dict.fromkeys(values, math.nan)
        samples = int(self._samples.compute())
        return Score(values.pop("fused"), values, samples, metrics if self._metrics else {})

    def reset(self) -> None:
        """Remove all batches."""
        self._samples.reset()
        self._samples.update(0.0)
        for name in ("fused", *self.modalities):
            # An update of no weight: a process without a sample of a modality takes part in the sum all the same,
            # and torchmetrics would warn of a metric that was never updated.
            self._mean(name).reset()
            self._mean(name).update(0.0, 0.0)
        for collection in self._metrics.values():
            cast("MetricCollection", collection).reset()

    def _mean(self, name: str) -> MeanMetric:
        return cast("MeanMetric", self._means[f"accuracy_{name}"])

    def _add(self, name: str, logits: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        task, mask = self.task, joint_mask(mask, self.task.has_target(targets))
        if isinstance(task, Classification):
            hits = (task.choice_logits(logits).argmax(1) == task.class_indices(targets)).float()
            hits = task.per_sample(hits)
        else:
            hits = torch.zeros(len(logits), device=logits.device)  # whose weights count the samples
        self._mean(name).update(hits, 1.0 if mask is None else mask.float())
        if self._metrics:
            collection = cast("MetricCollection", self._metrics[f"metrics_{name}"])
            if mask is None or mask.any():
                rows = slice(None) if mask is None else mask
                collection.update(logits[rows], targets[rows])

    def _compute_metrics(self, name: str, is_empty: bool) -> dict[str, float]:
        """Metrics of the task; NaN for a modality without samples."""
        if not self._metrics:
            return {}
        collection = cast("MetricCollection", self._metrics[f"metrics_{name}"])
        if is_empty:
            return {str(metric): math.nan for metric in collection}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a process that has none of the samples, for which others wait
            return {metric: float(value) for metric, value in collection.compute().items()}


@torch.no_grad()
def evaluate(
    model: MultimodalClassifier,
    method: Method,
    batches: Iterable[Batch],
    on_batch: Callable[[Prediction, Batch], None] | None = None,
) -> Score:
    """Score a model by its method's predictions, in evaluation mode.

    Training modes are restored afterwards. In distributed training every process passes its own batches and gets the
    score of all.

    Args:
        model: The model.
        method: Its training method, whose :meth:`~bmlr.Method.predict` gives the logits.
        batches: Batches of any sizes, on any device.
        on_batch: Called with the prediction of every batch, and the batch.

    Raises:
        ValueError: If there is no batch.
    """
    parameter = next(model.parameters())
    metric = ScoreMetric(model.modalities, model.task).to(parameter.device)
    with module_mode(model, method, training=False):
        for batch in batches:
            moved = batch.to(parameter.device, dtype=parameter.dtype)
            prediction = method.predict(model(moved.inputs, moved.present))
            metric.update(prediction, moved)
            if on_batch is not None:
                on_batch(prediction, moved)
        score = metric.compute()
    if not score.samples:
        raise ValueError("`batches` should hold at least one sample. Found none.")
    return score


def flatten_score(prefix: str, score: Score) -> Mapping[str, float]:
    """The score as one number per name, for loggers."""
    flat: dict[str, float] = {}
    if not math.isnan(score.accuracy):
        flat |= {f"{prefix}_ratio_{pair.replace('/', '_')}": value for pair, value in score.ratio.items() if value}
        flat |= {f"{prefix}_accuracy": score.accuracy}
        flat |= {f"{prefix}_accuracy_{name}": value for name, value in score.unimodal_accuracy.items()}
    for name, metrics in score.metrics.items():
        suffix = "" if name == "fused" else f"_{name}"
        flat |= {f"{prefix}_{metric}{suffix}": value for metric, value in metrics.items()}
    return flat
