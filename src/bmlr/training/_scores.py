"""Metrics of the multimodal and the unimodal predictions, and the ratios of the modalities."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection, SumMetric

from bmlr._checks import nearest_name
from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.tasks import Task, metric_form


@dataclasses.dataclass(frozen=True)
class Score:
    """Metrics and balance of a model on one split of the data.

    Attributes:
        metric: Name of the primary metric, such as ``accuracy``.
        metrics: Metrics of the multimodal prediction, by name.
        unimodal_metrics: The same of each modality's logits, over the samples that have it, by modality.
        samples: Number of samples.
    """

    metric: str
    metrics: dict[str, float]
    unimodal_metrics: dict[str, dict[str, float]]
    samples: int

    @property
    def fused(self) -> float:
        """Primary metric of the multimodal prediction."""
        return self.metrics[self.metric]

    @property
    def unimodal(self) -> dict[str, float]:
        """Primary metric of each modality."""
        return {name: metrics[self.metric] for name, metrics in self.unimodal_metrics.items()}

    @property
    def ratio(self) -> dict[str, float | None]:
        """Ratio of the primary metric of every pair of modalities, keyed ``audio/image``.

        1 is balanced; above it the first is ahead, also where errors are compared. None where the denominator is zero
        or a modality has no score.
        """
        values, larger = self.unimodal, metric_form(self.metric).larger_is_better
        quotients = {f"{a}/{b}": (a, b) if larger else (b, a) for a, b in itertools.combinations(values, 2)}
        defined = {pair for pair, (a, b) in quotients.items() if values[b] and not math.isnan(values[a] / values[b])}
        return {pair: values[a] / values[b] if pair in defined else None for pair, (a, b) in quotients.items()}

    def as_dict(self) -> dict[str, object]:
        """The score as plain data, for ``result.json``: each metric, and as ``unimodal_…`` that of each modality."""
        content: dict[str, object] = {}
        for name, value in self.metrics.items():
            content[name] = value
            content[f"unimodal_{name}"] = {u: metrics[name] for u, metrics in self.unimodal_metrics.items()}
        return content | {"ratio": self.ratio, "samples": self.samples}


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
        names = ("fused", *self.modalities)
        self._metrics = nn.ModuleDict({f"metrics_{name}": task.metrics() for name in names})
        self._samples = nn.ModuleDict({f"samples_{name}": SumMetric() for name in names})
        self._places = list(dict.fromkeys([task.primary, *map(str, self._collection("fused"))]))
        self.reset()

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Add a batch.

        Raises:
            ValueError: If its targets are none of the task.
        """
        self.task.check_targets(batch.targets, len(batch))
        self._add("fused", prediction.logits, batch.targets, None)
        for name, logits in prediction.unimodal_logits.items():
            self._add(name, logits, batch.targets, (batch.present or {}).get(name))

    def compute(self) -> Score:
        """The score so far; NaN for a modality without samples."""
        values = {name: self._compute(name) for name in ("fused", *self.modalities)}
        samples = int(self._counter("fused").compute())
        return Score(self.task.primary, values.pop("fused"), values, samples)

    def reset(self) -> None:
        """Remove all batches."""
        for name in ("fused", *self.modalities):
            self._collection(name).reset()
            self._counter(name).reset()
            self._counter(name).update(0.0)

    def _collection(self, name: str) -> MetricCollection:
        return cast("MetricCollection", self._metrics[f"metrics_{name}"])

    def _counter(self, name: str) -> SumMetric:
        return cast("SumMetric", self._samples[f"samples_{name}"])

    def _compute(self, name: str) -> dict[str, float]:
        """Metrics by name, the primary first."""
        if not self._counter(name).compute():  # the same in all processes
            return dict.fromkeys(self._places, math.nan)
        with warnings.catch_warnings():
            # A process without a sample of a modality takes part in the exchange all the same.
            warnings.filterwarnings("ignore", message=r"The ``compute`` method of metric")
            values = self._collection(name).compute()
        return {place: float(values[place]) for place in self._places}

    def _add(self, name: str, logits: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        if mask is not None:
            logits, targets = logits[mask], targets[mask]
        if len(targets):
            self._collection(name).update(logits, targets)
        self._counter(name).update(len(targets))


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


def check_monitor(name: str | None, task: Task) -> str | None:
    """Metric by which epochs are compared; None is the primary one.

    Raises:
        ValueError: If the task has no such metric; the message names those it has.
    """
    names = [str(name) for name in task.metrics()]
    if name is not None and name not in names:
        raise ValueError(
            f"Parameter `monitor` should be a metric of the task: {', '.join(names)}. Found `monitor = {name!r}`."
            f"{nearest_name(name, names)}"
        )
    return name


def flatten_score(prefix: str, score: Score) -> Mapping[str, float]:
    """The score as one number per name, for loggers."""
    flat: dict[str, float] = {}
    for metric, value in score.metrics.items():
        flat[f"{prefix}_{metric}"] = value
        flat |= {f"{prefix}_{metric}_{name}": metrics[metric] for name, metrics in score.unimodal_metrics.items()}
    return flat | {f"{prefix}_ratio_{pair.replace('/', '_')}": value for pair, value in score.ratio.items() if value}
