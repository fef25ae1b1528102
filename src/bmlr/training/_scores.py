"""Accuracy of the fused prediction and of each modality alone, and their balance."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier


@dataclasses.dataclass(frozen=True)
class Score:
    """How good and how balanced a model is on one part of the data.

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
        num_classes: Number of classes C.
    """

    def __init__(self, modalities: Sequence[str], num_classes: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self._accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, average="micro") for name in ("fused", *self.modalities)}
        )
        self._samples = SumMetric()

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Count a batch."""
        self._samples.update(len(batch))
        self._count("fused", prediction.logits, batch.targets)
        for name, logits in prediction.unimodal_logits.items():
            mask = (batch.present or {}).get(name)
            if mask is None:
                self._count(name, logits, batch.targets)
            elif bool(mask.any()):
                self._count(name, logits[mask], batch.targets[mask])

    def compute(self) -> Score:
        """The score so far; NaN for a modality that no sample had."""
        accuracy = {name: self._metric(name) for name in ("fused", *self.modalities)}
        values = {name: float(m.compute()) if m.update_called else math.nan for name, m in accuracy.items()}
        return Score(values.pop("fused"), values, int(self._samples.compute()))

    def reset(self) -> None:
        """Forget all batches."""
        self._samples.reset()
        for name in ("fused", *self.modalities):
            self._metric(name).reset()

    def _metric(self, name: str) -> MulticlassAccuracy:
        metric = self._accuracy[name]
        assert isinstance(metric, MulticlassAccuracy)  # noqa: S101  (for the type checker)
        return metric

    def _count(self, name: str, logits: Tensor, targets: Tensor) -> None:
        self._metric(name).update(logits, targets)


@torch.no_grad()
def evaluate(model: MultimodalClassifier, method: Method, batches: Iterable[Batch]) -> Score:
    """Score a model by its method's predictions, in evaluation mode; training modes are put back afterwards.

    Args:
        model: The model.
        method: The method it was trained by, whose :meth:`~bmlr.Method.predict` gives the logits.
        batches: Batches of any sizes, on any device.

    Raises:
        ValueError: If there is no batch.
    """
    parameter = next(model.parameters())
    metric = ScoreMetric(model.modalities, model.num_classes).to(parameter.device)
    with module_mode(model, method, training=False):
        seen = False
        for batch in batches:
            moved = batch.to(parameter.device, dtype=parameter.dtype)
            metric.update(method.predict(model(moved.inputs, moved.present)), moved)
            seen = True
    if not seen:
        raise ValueError("`batches` should hold at least one batch. Found none.")
    return metric.compute()


def flatten_score(prefix: str, score: Score) -> Mapping[str, float]:
    """The score as flat named numbers, for loggers."""
    flat = {f"{prefix}_accuracy": score.accuracy}
    flat |= {f"{prefix}_accuracy_{name}": value for name, value in score.unimodal_accuracy.items()}
    return flat | {f"{prefix}_ratio_{pair.replace('/', '_')}": value for pair, value in score.ratio.items() if value}
