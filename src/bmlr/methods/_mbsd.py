"""MBSD: self-distillation from the stronger to the weaker modality (WSDM 2023)."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_non_negative
from bmlr.functional import masked_mean, soft_cross_entropy
from bmlr.methods._base import Losses, Method, MethodInfo
from bmlr.methods._support import acts_in, check_epochs, log_probabilities, pair_mask, widened
from bmlr.model import Output

#: Lower bound of a confidence inside a logarithm; p log p is zero to float32 below it, its gradient would not be.
_MINIMUM_CONFIDENCE = 1e-8


class MBSD(Method):
    r"""Multi-modal self-distillation (Liu et al., WSDM 2023), from the stronger to the weaker modality of a sample.

    For a pair of modalities let s be the one more confident of the label and r the other, sample by sample, and
    :math:`w = (p^s_y - p^r_y)\,1[\text{s or r predicts } y]`. Mode ``clean``, with sg(·) the stop-gradient:

    .. math::
        L = \mathrm{CE}(y, f) + \sum_u \mathrm{CE}(y, \ell^u) + \frac{\mu}{\#\text{pairs}} \sum_{\text{pairs}}
        \frac1B \sum_i \mathrm{sg}(w_i) \Big[ \mathrm{KL}(\mathrm{sg}(p^s_i) \,\|\, p^r_i)
        + \tfrac1C \lVert \mathrm{sg}(\ell^s_i) - \ell^r_i \rVert^2 \Big]

    Deviations: the paper pre-trains a single-stream model of product images and texts, and no official code exists;
    its form for separate encoders is BalanceBenchmark's. Mode ``bb`` is that form: the KL term is
    :math:`p^r_y (\log p^r_y - p^s_y)` (PyTorch's pointwise ``kl_div`` given a probability for its logarithm; never
    positive, no divergence), the squared distance is of logits for two modalities and of probabilities for more, and
    nothing is detached, the weights w included. ``clean`` is the divergence that is evidently meant.
    Samples that lack a modality are left out of its pairs and of its unimodal loss.

    Args:
        mode: ``clean`` (default) or ``bb``.
        weight: Weight μ ≥ 0 of the distillation; 1 in BalanceBenchmark.
        first_epoch: First epoch, from zero, in which the method acts; outside its epochs the loss is the plain
            fused cross-entropy.
        last_epoch: Last epoch in which it acts; None takes no end (``clean``) or 80 (``bb``).

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
        title="MBSD",
        paper="Multimodal Pre-Training with Self-Distillation for Product Understanding in E-Commerce",
        venue="WSDM 2023",
        url="https://doi.org/10.1145/3539597.3570423",
        family="labels and losses",
    )

    def __init__(
        self,
        mode: Literal["clean", "bb"] = "clean",
        weight: float = 1.0,
        first_epoch: int = 0,
        last_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.mode = check_choice("mode", mode, ("clean", "bb"))
        self.weight = check_non_negative("weight", weight)
        self.first_epoch, self.last_epoch = check_epochs(first_epoch, last_epoch, 80 if mode == "bb" else None)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Fused and unimodal cross-entropies and the distillation of every pair."""
        terms = {"fused": soft_cross_entropy(output.logits, targets)}
        if not acts_in(self.epoch, self.first_epoch, self.last_epoch):
            return Losses(terms)
        logits = output.unimodal_logits
        for name, values in logits.items():
            terms[name] = soft_cross_entropy(values, targets, mask=output.mask(name))
        pairs = [
            masked_mean(self._distillation(logits[u], logits[v], targets, len(logits)), pair_mask(output, u, v))
            for u, v in combinations(logits, 2)
        ]
        return Losses({**terms, "distillation": self.weight * torch.stack(pairs).mean()})

    def _distillation(self, first: Tensor, second: Tensor, targets: Tensor, num_modalities: int) -> Tensor:
        if self.mode == "clean":
            return _distillation(first, second, targets)
        return _pointwise_distillation(first, second, targets, of_logits=num_modalities == 2)


def _distillation(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Per sample w [KL(p^s ‖ p^r) + ‖ℓ^s − ℓ^r‖² / C], shape (B,), with gradient to the weaker modality only."""
    logits, log_p = torch.stack([widened(first), widened(second)]), _both_log_probabilities(first, second)
    confidence = _confidence(log_p, targets)
    first_is_strong = (confidence[0] >= confidence[1])[:, None]
    strong_log_p = torch.where(first_is_strong, log_p[0], log_p[1]).detach()
    weak_log_p = torch.where(first_is_strong, log_p[1], log_p[0])
    strong = torch.where(first_is_strong, logits[0], logits[1]).detach()
    weak = torch.where(first_is_strong, logits[1], logits[0])
    weight = (confidence[0] - confidence[1]).abs().detach() * _either_correct(log_p, targets)
    divergence = (strong_log_p.exp() * (strong_log_p - weak_log_p)).sum(1)
    return weight * (divergence + (strong - weak).square().mean(1))


def _pointwise_distillation(first: Tensor, second: Tensor, targets: Tensor, *, of_logits: bool) -> Tensor:
    """Per sample BalanceBenchmark's w (KL + RS), shape (B,), with gradient everywhere."""
    log_p = _both_log_probabilities(first, second)
    confidence = _confidence(log_p, targets)
    strong, weak = torch.maximum(*confidence), torch.minimum(*confidence)
    weight = (strong - weak) * _either_correct(log_p, targets)
    divergence = weak * (weak.clamp(min=_MINIMUM_CONFIDENCE).log() - strong)
    gap = widened(first) - widened(second) if of_logits else log_p[0].exp() - log_p[1].exp()
    return weight * (divergence + gap.square().mean(1))


def _both_log_probabilities(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([log_probabilities(first), log_probabilities(second)])


def _confidence(log_p: Tensor, targets: Tensor) -> Tensor:
    """Probability of the true class, shape (2, B)."""
    return log_p.gather(2, targets.long().expand(2, -1)[..., None]).squeeze(2).exp()


def _either_correct(log_p: Tensor, targets: Tensor) -> Tensor:
    return (log_p.argmax(2) == targets).any(0)
