"""BMLR and its ablations (Balanced Multimodal Label Reshaping, arXiv 2605.28869)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_positive, check_unit_interval
from bmlr.functional import (
    ReshapedLabels,
    cross_modal_labels,
    masked_mean,
    reshape_labels,
    smooth_labels,
    soft_cross_entropy,
)
from bmlr.methods._base import Method
from bmlr.methods._types import Losses, MethodInfo, Remedy
from bmlr.model import Output

_PAPER = "Balancing Multimodal Learning through Label Space Reshaping"
_URL = "https://arxiv.org/abs/2605.28869"


def _info(where: str) -> MethodInfo:
    return MethodInfo(paper=_PAPER, venue=f"arXiv 2026, {where}", url=_URL, family="labels and losses")


class _ReshapingMethod(Method):
    """Base of the methods with labels of their own."""

    @abstractmethod
    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Labels of each modality, (B, C), and their intensity, (B,), if any."""

    def labels(self, output: Output, targets: Tensor) -> Mapping[str, Tensor] | None:
        """Reshaped labels of each modality, shape (B, C)."""
        return self.reshape(output.unimodal_logits, targets, output.present).labels


class _TargetedMethod(_ReshapingMethod):
    """Targeted Parameter Optimization (Eqs. 10 and 11)."""

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Losses L⁰, for the classifier head alone, and Lᵘ, for encoder u alone."""
        logits = output.encoder_logits
        labels, intensity = self.reshape(logits, targets, output.present)
        return Losses(
            {
                "fused": soft_cross_entropy(output.decision_logits, targets),
                **_label_terms(output, logits, labels),
            },
            _reshaped_fractions(output, intensity),
        )


class BMLR(_TargetedMethod):
    r"""Balanced Multimodal Label Reshaping (arXiv 2605.28869).

    Each modality u learns from its reshaped label :math:`\tilde y^u` (:func:`bmlr.reshape_labels`, Eqs. 4 to 8), and
    Targeted Parameter Optimization (Eqs. 10, 11) gives encoders and classifier head losses of their own:

    .. math::
        L^u = \mathrm{CE}(\tilde y^u, p^u) \to \theta^u, \qquad L^0 = \mathrm{CE}(y, p) \to \Theta .

    Both come from one backward pass over their sum: the unimodal logits are formed with a detached classifier head,
    the fused ones from detached features, so that ∂L⁰/∂θᵘ and ∂Lᵘ/∂Θ are exactly zero. Losses are means over the
    batch (the paper writes sums); the weights wᵘ of Eq. 9 are 1. With more than two modalities the strongest and
    the weakest of each sample are reshaped (Sec. IV-F).

    The paper searches α and β for each data set and does not state them. The defaults here are the values that are
    near the best of a grid in each of fourteen settings (``benchmarks/defaults.py``): the temperature is the
    confidence ratio itself, and labels are reshaped up to a ratio of two.

    Args:
        alpha: Temperature factor α > 0 of Eq. 5.
        beta: Threshold β in [0, 1] of Eq. 7: no reshaping where the confidence ratio reaches 1/β; 0 is no limit.

    Raises:
        ValueError: If α or β is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> losses = bmlr.methods.BMLR(alpha=1.0, beta=0.5)(output, torch.tensor([0, 2]))
        >>> losses.total.backward()
        >>> sorted(losses.terms), sorted(losses.logs)
        (['a', 'fused', 'v'], ['reshaped_a', 'reshaped_v'])
    """

    info: ClassVar[MethodInfo] = _info("Sec. III")
    remedy: ClassVar[Remedy | None] = Remedy(
        "decision", "trains every modality's own prediction and softens the labels of the one that is ahead", rank=1
    )

    def __init__(self, alpha: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.alpha, self.beta = check_positive("alpha", alpha), check_unit_interval("beta", beta)

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Reshaped labels (Eq. 8) and their intensity (Eq. 7)."""
        return reshape_labels(logits, targets, alpha=self.alpha, beta=self.beta, present=present)


class VanillaReshape(BMLR):
    """BMLR without the one-hot part of Eq. 8 (Table V).

    The label is the other modality's softened prediction where ξ > 0.

    Args:
        alpha: Temperature factor α > 0 of Eq. 5.
        beta: Threshold β in [0, 1] of Eq. 7.

    Example:
        >>> import bmlr
        >>> bmlr.methods.VanillaReshape(alpha=2.0)
        VanillaReshape(alpha=2.0, beta=0.5)
    """

    info: ClassVar[MethodInfo] = _info("Table V")
    remedy: ClassVar[Remedy | None] = None
    shares_parameters_with: ClassVar[type[Method] | None] = BMLR

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Softened predictions for the stronger modality, one-hot labels elsewhere."""
        return reshape_labels(logits, targets, alpha=self.alpha, beta=self.beta, present=present, keep_one_hot=False)


class OnlyTPO(_TargetedMethod):
    """Targeted Parameter Optimization with one-hot labels (Table V).

    It is BMLR at β = 1, bit for bit. It differs from DGL in the unimodal bias (b/M here, b there) and by DGL's α and
    gradient clipping.

    Example:
        >>> import bmlr
        >>> bmlr.methods.OnlyTPO()
        OnlyTPO()
    """

    info: ClassVar[MethodInfo] = _info("Table V")
    min_modalities: ClassVar[int] = 1

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """One-hot labels as distributions, for the arithmetic of BMLR."""
        labels = {name: F.one_hot(targets.long(), values.shape[1]).float() for name, values in logits.items()}
        return ReshapedLabels(labels, {})

    def labels(self, output: Output, targets: Tensor) -> None:
        """None: one-hot labels."""


class UniDistill(_TargetedMethod):
    """Cross-modal distillation (Table V): the label is the other modality's plain prediction.

    With more than two modalities it is the mean prediction of the others (:func:`bmlr.functional.cross_modal_labels`).

    Example:
        >>> import bmlr
        >>> bmlr.methods.UniDistill()
        UniDistill()
    """

    info: ClassVar[MethodInfo] = _info("Table V")

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Plain predictions of the other modality."""
        return ReshapedLabels(cross_modal_labels(logits, targets, present=present), {})


class UniReshaping(_TargetedMethod):
    """Uniform label smoothing, (1 − ε) y + ε / C, in place of reshaping (Table IV).

    Args:
        epsilon: Fraction ε in [0, 1] spread over all classes. The paper does not state its value; 0.1 is
            the customary one.

    Raises:
        ValueError: If ε lies outside [0, 1].

    Example:
        >>> import bmlr
        >>> bmlr.methods.UniReshaping()
        UniReshaping(epsilon=0.1)
    """

    info: ClassVar[MethodInfo] = _info("Table IV")
    min_modalities: ClassVar[int] = 1

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = check_unit_interval("epsilon", epsilon)

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Smoothed one-hot labels."""
        labels = {}
        for name, values in logits.items():
            dtype = torch.promote_types(values.dtype, torch.float32)
            labels[name] = smooth_labels(targets, values.shape[1], epsilon=self.epsilon, dtype=dtype)
        return ReshapedLabels(labels, {})


class OnlyReshape(_ReshapingMethod):
    """Reshaped labels without Targeted Parameter Optimization (Table V): L⁰ + Σ Lᵘ trains all.

    Args:
        alpha: Temperature factor α > 0 of Eq. 5.
        beta: Threshold β in [0, 1] of Eq. 7.

    Raises:
        ValueError: If α or β is out of its range.

    Example:
        >>> import bmlr
        >>> bmlr.methods.OnlyReshape(beta=0.5)
        OnlyReshape(alpha=1.0, beta=0.5)
    """

    info: ClassVar[MethodInfo] = _info("Table V")
    shares_parameters_with: ClassVar[type[Method] | None] = BMLR

    def __init__(self, alpha: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.alpha, self.beta = check_positive("alpha", alpha), check_unit_interval("beta", beta)

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Reshaped labels (Eq. 8) and their intensity (Eq. 7)."""
        return reshape_labels(logits, targets, alpha=self.alpha, beta=self.beta, present=present)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Fused and unimodal losses; every gradient flows everywhere."""
        logits = output.unimodal_logits
        reshaped = self.reshape(logits, targets, output.present)
        return Losses(
            {
                "fused": soft_cross_entropy(output.logits, targets),
                **_label_terms(output, logits, reshaped.labels),
            },
            _reshaped_fractions(output, reshaped.intensity),
        )


def _label_terms(output: Output, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses Lᵘ = CE(ỹᵘ, pᵘ) (Eq. 10) over the samples with modality u."""
    return {name: soft_cross_entropy(logits[name], labels[name], mask=output.mask(name)) for name in logits}


def _reshaped_fractions(output: Output, intensity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fraction of reshaped labels per modality."""
    return {f"reshaped_{name}": masked_mean((xi > 0).to(xi.dtype), output.mask(name)) for name, xi in intensity.items()}
