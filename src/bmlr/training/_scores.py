"""Accuracy of the fused and the unimodal predictions, and their ratios."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy and balance of a model on one split of the data.

    Attributes:
        accuracy: Fraction of samples whose class has the largest fused logit.
        unimodal_accuracy: The same for the logits of each modality, over the samples that have it.
        samples: Number of samples.
    """

    accuracy: float
    unimodal_accuracy: dict[str, float]
    samples: int

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
        }


class ScoreMetric(nn.Module):
    """Running score over batches; in distributed training :meth:`compute` takes in all processes.

    Args:
        modalities: Names of the modalities.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        # A prefix: the names of modules may not be those of attributes, such as "train", which a modality may have.
        self._means = nn.ModuleDict({f"accuracy_{name}": MeanMetric() for name in ("fused", *self.modalities)})
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
        return Score(values.pop("fused"), values, int(self._samples.compute()))

    def reset(self) -> None:
        """Remove all batches."""
        self._samples.reset()
        self._samples.update(0.0)
        for name in ("fused", *self.modalities):
            # An update of no weight: a process without a sample of a modality takes part in the sum all the same,
            # and torchmetrics would warn of a metric that was never updated.
            self._mean(name).reset()
            self._mean(name).update(0.0, 0.0)

    def _mean(self, name: str) -> MeanMetric:
        return cast("MeanMetric", self._means[f"accuracy_{name}"])

    def _add(self, name: str, logits: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        hits = (logits.argmax(1) == targets).float()
        self._mean(name).update(hits, 1.0 if mask is None else mask.float())


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
    metric = ScoreMetric(model.modalities).to(parameter.device)
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
    flat = {f"{prefix}_accuracy": score.accuracy}
    flat |= {f"{prefix}_accuracy_{name}": value for name, value in score.unimodal_accuracy.items()}
    return flat | {f"{prefix}_ratio_{pair.replace('/', '_')}": value for pair, value in score.ratio.items() if value}
