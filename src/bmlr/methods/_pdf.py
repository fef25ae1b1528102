"""PDF: predictive dynamic fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr.encoders.features import pooled
from bmlr.functional import log_probabilities, widened
from bmlr.fusion import match_dtype
from bmlr.methods._support import HeadedMethod, apply_heads, classification, presence
from bmlr.methods._types import CLASSIFICATION, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Classification


class PDF(HeadedMethod):
    r"""Predictive Dynamic Fusion (Cao et al., 2024).

    It is a late fusion weighted by predicted confidences. Each modality has a linear head with logits :math:`\ell_u`
    and a confidence net that predicts its probability of the true class, :math:`c_u \approx p_{u,y}` with
    :math:`p_u = \mathrm{softmax}(\ell_u)`. Per sample

    .. math::
        b_u = \underbrace{c_u}_{\text{mono}}
            + \underbrace{\frac{\sum_{v \ne u} \log c_v}{\sum_v \log c_v}}_{\text{holo}}, \qquad
        w = \mathrm{softmax}_u(b_u), \qquad f = \sum_u w_u \ell_u ,

    .. math::
        L = \mathrm{CE}(y, f) + \sum_u \mathrm{CE}(y, \ell_u) + \sum_u \overline{\lvert c_u - p_{u,y} \rvert} .

    The co-belief b carries no gradient, :math:`p_{u,y}` is a constant of the last term, and confidence nets read
    features without gradient. Predictions calibrate the co-belief: with the distance from the uniform prediction
    :math:`d_u = \frac1C \sum_k \lvert p_{u,k} - \frac1C \rvert`, the weights are the softmax of
    :math:`b_u \min(1, d_u / \bar d_{v \ne u})`, so that the less certain prediction counts less.

    Deviations:

    * The formulas are those of the official code, whose two modalities are text and image. Holo-confidence of more is
      the same quotient, and calibration compares with the mean distance of the others (both ours).
    * The official confidence net has three linear layers, of width 2d, d and 1, with nothing between them and a sigmoid
      at the end; so it is here. Logarithms are formed before the sigmoid: a certain net gives finite weights.
    * The official code adds 1e-8 to a denominator that is negative; here it is added to its absolute value.
    * Official training selects its epoch by uncalibrated predictions and tests by calibrated ones. Here validation and
      test see the same; ``calibrate=False`` is the former.
    * Its ``multilabel`` option takes a cross-entropy of classes all the same. Here each label is a choice between two
      classes, C = 2; :math:`c_u` is the mean probability of what is true of a sample, :math:`d_u` the mean distance.
    * A modality that a sample lacks has weight zero and is none of the others. The fusion of the model is not trained.

    The official recipe is Adam with 1e-4, batches of 128, at most 100 epochs, the rate halved after two epochs without
    gain on validation and stopped after ten.

    Args:
        calibrate: Calibrate the weights of predictions.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.PDF()
        >>> method.setup(model)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(method(output, torch.tensor([0, 2])).terms)
        ['a', 'a_confidence', 'fused', 'v', 'v_confidence']
        >>> method.predict(output).logits.shape
        torch.Size([2, 3])
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Predictive Dynamic Fusion",
        venue="ICML 2024",
        url="https://arxiv.org/abs/2406.04802",
        family="fusion and inference",
        cost="1 forward, 1 backward, M confidence nets",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "its weights are predicted probabilities of the true class"
    leaves_gradients_unset: ClassVar[bool] = True  # the fusion is not trained

    def __init__(self, calibrate: bool = True) -> None:
        super().__init__()
        self.calibrate = bool(calibrate)
        self.confidence_nets = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make a linear head and a confidence net per modality."""
        super().setup(model)
        like = next(model.parameters())
        self.confidence_nets = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, 1)).to(like)
                for name, d in model.fusion.feature_dims.items()
            }
        )

    @property
    def trains_fusion(self) -> bool:
        """The multimodal logits are those of the heads."""
        return False

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Losses of multimodal logits, unimodal logits and predicted confidences."""
        task, logits = output.task, apply_heads(self, self.heads, output)
        doubts = self._doubts(output)
        weights = _weights(_co_beliefs(doubts, presence(output)), presence(output))
        terms = {"fused": task.loss(_weighted(weights, logits), targets)}
        for column, (name, values) in enumerate(logits.items()):
            mask = output.mask(name)
            terms[name] = task.loss(values, targets, mask)
            error = (doubts[:, column].neg().exp() - task.confidence(values.detach(), targets)).abs()
            terms[f"{name}_confidence"] = task.average(error, targets, mask)
        return Losses(terms, {f"weight_{u}": w for u, w in zip(logits, weights.mean(0), strict=True)})

    def predict(self, output: Output) -> Prediction:
        """Weighted logits of the heads, calibrated unless told otherwise."""
        logits, present = apply_heads(self, self.heads, output), presence(output)
        beliefs = _co_beliefs(self._doubts(output), present)
        if self.calibrate:
            beliefs = beliefs * _calibration(logits, present, classification(output.task))
        return Prediction(_weighted(_weights(beliefs, present), logits), logits)

    def _doubts(self, output: Output) -> Tensor:
        """Predicted −log c of the modalities, shape (B, M)."""
        columns = []
        for name, features in output.detached_features.items():
            net = self.confidence_nets[name]
            columns.append(F.softplus(-widened(net(match_dtype(pooled(features), net)))))
        return torch.cat(columns, 1)


@torch.no_grad()
def _co_beliefs(doubts: Tensor, present: Tensor) -> Tensor:
    """Mono- plus holo-confidence, shape (B, M), from −log c."""
    counted = torch.where(present, doubts, 0.0)
    total = counted.sum(1, keepdim=True)
    return doubts.neg().exp() + (total - counted) / (total + 1e-8)


def _weights(beliefs: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present modalities, shape (B, M).

    It is even without any.
    """
    return beliefs.masked_fill(~present, torch.finfo(beliefs.dtype).min).softmax(1)


def _weighted(weights: Tensor, logits: Mapping[str, Tensor]) -> Tensor:
    stacked = widened(torch.stack(list(logits.values()), 1))
    return (weights[..., None] * torch.where(weights[..., None] > 0, stacked, 0.0)).sum(1)


@torch.no_grad()
def _calibration(logits: Mapping[str, Tensor], present: Tensor, task: Classification) -> Tensor:
    """Calibration factors min(1, dᵤ / d̄ᵥ), shape (B, M).

    They are 1 without other modalities.
    """
    choices = [task.choice_logits(values) for values in logits.values()]
    distances = [(log_probabilities(rows).exp() - 1 / rows.shape[1]).abs().mean(1) for rows in choices]
    d = torch.where(present, torch.stack([task.per_sample(values) for values in distances], 1), 0.0)
    rival = (d.sum(1, keepdim=True) - d) / (present.sum(1, keepdim=True) - 1).clamp(min=1)
    return torch.where(d >= rival, 1.0, d / rival.clamp(min=torch.finfo(d.dtype).tiny))
