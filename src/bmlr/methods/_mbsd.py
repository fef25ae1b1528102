"""MBSD: self-distillation from the stronger to the weaker modality."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_non_negative
from bmlr.functional import log_probabilities, masked_mean, widened
from bmlr.methods._support import WindowedMethod, classification, pair_mask
from bmlr.methods._types import CLASSIFICATION, Losses, MethodInfo
from bmlr.model import Output


class MBSD(WindowedMethod):
    r"""Multi-modal self-distillation (Liu et al., 2023) from the stronger to the weaker modality.

    For a pair of modalities let s be the one more confident of the label and r the other, sample by sample, and
    :math:`w = (p^s_y - p^r_y)\,1[\text{s or r predicts } y]`. With sg(·) the stop-gradient,

    .. math::
        L = \mathrm{CE}(y, f) + \sum_u \mathrm{CE}(y, \ell^u) + \frac{\mu}{\#\text{pairs}} \sum_{\text{pairs}}
        \frac1B \sum_i \mathrm{sg}(w_i) \Big[ \mathrm{KL}(\mathrm{sg}(p^s_i) \,\|\, p^r_i)
        + \tfrac1C \lVert \mathrm{sg}(\ell^s_i) - \ell^r_i \rVert^2 \Big]

    Deviations: the paper pre-trains a single-stream model of product images and texts, and no official code exists.
    Its form for separate encoders is BalanceBenchmark's, :class:`MBSDBalanceBenchmark`; this is the divergence that is
    evidently meant. Samples that lack a modality are left out of its pairs and of its unimodal loss.

    With several labels (ours) each label has its own stronger modality, distributions (1 − p, p) and logits (0, ℓ), and
    the distillation is the mean over them. Between numbers there is no divergence.

    Args:
        weight: Weight μ ≥ 0 of the distillation; 1 in BalanceBenchmark.
        first_epoch: First epoch, from zero, in which the method acts; outside its epochs the loss is the plain
            multimodal cross-entropy.
        last_epoch: Last epoch in which it acts; None is no end.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(bmlr.methods.MBSD()(output, torch.tensor([0, 2])).terms)
        ['a', 'distillation', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Multimodal Pre-Training with Self-Distillation for Product Understanding in E-Commerce",
        venue="WSDM 2023",
        url="https://doi.org/10.1145/3539597.3570423",
        family="labels and losses",
    )

    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it distils distributions over classes"

    def __init__(self, weight: float = 1.0, first_epoch: int = 0, last_epoch: int | None = None) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)
        self.set_window(first_epoch, last_epoch)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Multimodal and unimodal cross-entropies and the distillation of every pair."""
        task = classification(output.task)
        terms = {"fused": task.loss(output.logits, targets)}
        if not self.is_acting:
            return Losses(terms)
        logits = output.unimodal_logits
        for name, values in logits.items():
            terms[name] = task.loss(values, targets, output.mask(name))
        classes = task.class_indices(targets)
        choices = {name: task.choice_logits(values) for name, values in logits.items()}
        pairs = []
        for u, v in combinations(logits, 2):
            values = task.per_sample(self._distillation(choices[u], choices[v], classes, len(logits)))
            pairs.append(masked_mean(values, task.counted(targets, pair_mask(output, u, v))))
        return Losses({**terms, "distillation": self.weight * torch.stack(pairs).mean()})

    def _distillation(self, first: Tensor, second: Tensor, targets: Tensor, num_modalities: int) -> Tensor:
        """Distillation w [KL + ‖ℓ^s − ℓ^r‖² / C], shape (N,), with gradient to the weaker."""
        logits, log_p = torch.stack([widened(first), widened(second)]), pair_log_probabilities(first, second)
        confidence = true_confidence(log_p, targets)
        first_is_strong = (confidence[0] >= confidence[1])[:, None]
        strong_log_p = torch.where(first_is_strong, log_p[0], log_p[1]).detach()
        weak_log_p = torch.where(first_is_strong, log_p[1], log_p[0])
        strong = torch.where(first_is_strong, logits[0], logits[1]).detach()
        weak = torch.where(first_is_strong, logits[1], logits[0])
        weight = (confidence[0] - confidence[1]).abs().detach() * either_correct(log_p, targets)
        divergence = (strong_log_p.exp() * (strong_log_p - weak_log_p)).sum(1)
        return weight * (divergence + (strong - weak).square().mean(1))


def pair_log_probabilities(first: Tensor, second: Tensor) -> Tensor:
    """Log-probabilities of both modalities, shape (2, N, C)."""
    return torch.stack([log_probabilities(first), log_probabilities(second)])


def true_confidence(log_p: Tensor, targets: Tensor) -> Tensor:
    """Probability of the true class, shape (2, N)."""
    return log_p.gather(2, targets.long().expand(2, -1)[..., None]).squeeze(2).exp()


def either_correct(log_p: Tensor, targets: Tensor) -> Tensor:
    """Choices with a correct prediction of either modality, shape (N,)."""
    return (log_p.argmax(2) == targets).any(0)
