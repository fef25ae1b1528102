"""Accuracy of the fused prediction and of each modality alone, and their balance."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier


@dataclasses.dataclass(frozen=True)
class Score:
    """How good and how balanced a model is on one split of the data.

    Attributes:
        accuracy: Share of samples whose class has the largest fused logit.
        unimodal_accuracy: The same for the logits of each modality, over the samples that have it.
        samples: Number of samples.
    """

    accuracy: float
    unimodal_accuracy: dict[str, float]
    samples: int

    @property
    def ratio(self) -> dict[str, float | None]:
        """Quotient of the accuracies of every pair of modalities, keyed ``audio/image``; 1 is balanced.

        None where the denominator is zero.
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
        }


class ScoreMetric(nn.Module):
    """Running score over batches; its counts are summed over processes where training is distributed.

    Args:
        modalities: Names of the modalities.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        # Sums rather than accuracies: a process without a sample of some modality still takes part in adding up.
        names = ("fused", *self.modalities)
        self._sums = nn.ModuleDict({f"{what}_{name}": SumMetric() for what in ("hits", "count") for name in names})
        self.reset()

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Count a batch."""
        self._count("fused", prediction.logits, batch.targets, None)
        for name, logits in prediction.unimodal_logits.items():
            self._count(name, logits, batch.targets, (batch.present or {}).get(name))

    def compute(self) -> Score:
        """The score so far; NaN for a modality that no sample had."""
        sums = {name: float(metric.compute()) for name, metric in self._metrics().items()}
        values = {
            name: sums[f"hits_{name}"] / count if (count := sums[f"count_{name}"]) else math.nan
            for name in ("fused", *self.modalities)
        }
        return Score(values.pop("fused"), values, int(sums["count_fused"]))

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._metrics().values():
            metric.reset()
            metric.update(0.0)

    def _metrics(self) -> dict[str, SumMetric]:
        return {name: cast("SumMetric", metric) for name, metric in self._sums.items()}

    def _count(self, name: str, logits: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        metrics, hits = self._metrics(), logits.argmax(1) == targets
        metrics[f"hits_{name}"].update((hits if mask is None else hits & mask).sum())
        metrics[f"count_{name}"].update(len(targets) if mask is None else mask.sum())


@torch.no_grad()
def evaluate(
    model: MultimodalClassifier,
    method: Method,
    batches: Iterable[Batch],
    watch: Callable[[Prediction, Batch], None] | None = None,
) -> Score:
    """Score a model by its method's predictions, in evaluation mode; training modes are put back afterwards.

    Under distributed training every process gives its share of the batches and gets the score of all.

    Args:
        model: The model.
        method: The method it was trained by, whose :meth:`~bmlr.Method.predict` gives the logits.
        batches: Batches of any sizes, on any device.
        watch: Called with the prediction of every batch.

    Raises:
        ValueError: If there is no batch.
    """
    parameter = next(model.parameters())
    metric = ScoreMetric(model.modalities).to(parameter.device)
    with module_mode(model, method, training=False):
        for batch in batches:
            moved = batch.to(parameter.device, dtype=parameter.dtype)
            prediction = method.predict(model(moved.inputs, moved.present))
            metric.update(prediction, moved)
            if watch is not None:
                watch(prediction, moved)
        score = metric.compute()
    if not score.samples:
        raise ValueError("`batches` should hold at least one sample. Found none.")
    return score


def flatten_score(prefix: str, score: Score) -> Mapping[str, float]:
    """The score as flat named numbers, for loggers."""
    flat = {f"{prefix}_accuracy": score.accuracy}
    flat |= {f"{prefix}_accuracy_{name}": value for name, value in score.unimodal_accuracy.items()}
    return flat | {f"{prefix}_ratio_{pair.replace('/', '_')}": value for pair, value in score.ratio.items() if value}
