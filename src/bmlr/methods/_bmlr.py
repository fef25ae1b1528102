"""BMLR and its ablations (Balanced Multimodal Label Reshaping, arXiv 2605.28869)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_positive, check_unit_interval
from bmlr.functional import (
    ReshapedLabels,
    cross_modal_labels,
    masked_mean,
    reshape_labels,
    smooth_labels,
)
from bmlr.methods._base import Method
from bmlr.methods._support import classification
from bmlr.methods._types import ALL_TASKS, CLASSIFICATION, Conformance, Losses, MethodInfo, Remedy
from bmlr.model import Output

_PAPER = "Balancing Multimodal Learning through Label Space Reshaping"
_URL = "https://arxiv.org/abs/2605.28869"


def _info(where: str) -> MethodInfo:
    return MethodInfo(paper=_PAPER, venue=f"arXiv 2026, {where}", url=_URL, family="labels and losses")


class _LabelMethod(Method):
    """Base of the methods with labels of their own."""

    @abstractmethod
    def make_labels(self, output: Output, logits: Mapping[str, Tensor], targets: Tensor) -> ReshapedLabels:
        """Labels of each modality, in the shape of the logits, and their intensity, if any."""

    def labels(self, output: Output, targets: Tensor) -> Mapping[str, Tensor] | None:
        """Reshaped labels of each modality, shape (B, C)."""
        return self.make_labels(output, output.unimodal_logits, targets).labels


class _ReshapingMethod(_LabelMethod):
    """Base of the methods that reshape distributions over classes.

    Of several labels each is such a distribution, (1 − p, p), with the logits (0, ℓ). It has a confidence ratio, a
    strongest and a weakest modality of its own, and the second entry is its reshaped label.
    """

    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "a label to reshape is a distribution over classes"

    @abstractmethod
    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Labels of each modality, (N, C), and their intensity, (N,), if any; N is B, or B·L for several labels."""

    def make_labels(self, output: Output, logits: Mapping[str, Tensor], targets: Tensor) -> ReshapedLabels:
        """Labels of each modality, in the shape of the logits, and their intensity, (N,), if any."""
        task = classification(output.task)
        present = output.present and {name: task.choice_mask(mask) for name, mask in output.present.items()}
        choices = {name: task.choice_logits(values) for name, values in logits.items()}
        labels, intensity = self.reshape(choices, task.choice_targets(targets), present)
        return ReshapedLabels({name: task.from_choices(values) for name, values in labels.items()}, intensity)


class _TargetedMethod(_LabelMethod):
    """Targeted Parameter Optimization (Eqs. 10 and 11)."""

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Losses L⁰, for the classifier head alone, and Lᵘ, for encoder u alone."""
        logits = output.encoder_logits
        labels, intensity = self.make_labels(output, logits, targets)
        return Losses(
            {
                "fused": output.task.loss(output.decision_logits, targets),
                **_label_terms(output, logits, labels, targets),
            },
            _reshaped_fractions(output, intensity, targets),
        )


class BMLR(_ReshapingMethod, _TargetedMethod):
    r"""Balanced Multimodal Label Reshaping (arXiv 2605.28869).

    Each modality u learns from its reshaped label :math:`\tilde y^u` (:func:`bmlr.reshape_labels`, Eqs. 4 to 8), and
    Targeted Parameter Optimization (Eqs. 10, 11) gives encoders and classifier head losses of their own:

    .. math::
        L^u = \mathrm{CE}(\tilde y^u, p^u) \to \theta^u, \qquad L^0 = \mathrm{CE}(y, p) \to \Theta .

    Both come from one backward pass over their sum: the unimodal logits are formed with a detached classifier head,
    the multimodal ones from detached features, so that ∂L⁰/∂θᵘ and ∂Lᵘ/∂Θ are exactly zero. Losses are means over the
    batch (the paper writes sums); the weights wᵘ of Eq. 9 are 1. With more than two modalities the strongest and
    the weakest of each sample are reshaped (Sec. IV-F).

    For several labels each label's pair (1 − p, p) is reshaped by itself, with C = 2 in Eqs. 4 to 8, an extension of
    ours: a modality may be the stronger one for one label and the weaker for another. The losses are then binary
    cross-entropies. With one label it is the two-class case exactly. For numbers it is not defined: a reshaped label is
    a distribution over classes.

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
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    min_modalities: ClassVar[int] = 1

    def make_labels(self, output: Output, logits: Mapping[str, Tensor], targets: Tensor) -> ReshapedLabels:
        """One-hot labels as distributions, for the arithmetic of BMLR; labels and numbers as they are."""
        return ReshapedLabels(dict.fromkeys(logits, output.task.labels(targets)), {})

    def labels(self, output: Output, targets: Tensor) -> None:
        """None: one-hot labels."""


class UniDistill(_ReshapingMethod, _TargetedMethod):
    """Cross-modal distillation (Table V): labels are plain predictions of another modality.

    With ``gate`` the surer modality of a sample learns the prediction of the less sure one, at temperature 1 and
    whatever their ratio, and the others keep their one-hot labels: :class:`VanillaReshape` without its α and β.
    Otherwise every modality learns the other's prediction (:func:`bmlr.functional.cross_modal_labels`; of more than two
    the mean of the others'), which is the text of the paper at its word.

    No reading is proven to be the paper's. At its word no label reaches any encoder: both agree on a constant, and the
    accuracy falls to chance at every temperature and length of training tried, where the paper has 54.69 to 73.86 %.
    Of a dozen readings the gated one alone has the paper's profile over data sets, the worse the more classes.

    Args:
        gate: Whether the surer modality alone learns from another.

    Raises:
        ValueError: At setup, if the model has a single modality.

    Example:
        >>> import bmlr
        >>> bmlr.methods.UniDistill()
        UniDistill(gate=True)
    """

    info: ClassVar[MethodInfo] = _info("Table V")
    conformance: ClassVar[Conformance] = Conformance(variants={"word": {"gate": False}})

    def __init__(self, gate: bool = True) -> None:
        super().__init__()
        self.gate = gate

    def reshape(
        self, logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None
    ) -> ReshapedLabels:
        """Plain predictions of the less sure modality, or of all others."""
        if not self.gate:
            return ReshapedLabels(cross_modal_labels(logits, targets, present=present), {})
        return reshape_labels(
            logits, targets, alpha=1.0, beta=0.0, present=present, keep_one_hot=False, temperature=1.0
        )


class UniReshaping(_ReshapingMethod, _TargetedMethod):
    """Uniform label smoothing, (1 − ε) y + ε / C, in place of reshaping (Table IV).

    By default there is one loss, of the multimodal prediction: label smoothing as LFM has it, the likeliest reading.
    ``targeted`` gives encoders and classifier head losses of their own, as BMLR does, with smoothed labels for the
    encoders.

    Neither reproduces the size of the paper's drop of 12 and 8 points below Uniform-Baseline. Half of it is the choice
    of that reference: against its Baseline, the joint training that this form smooths, the paper loses 5.4 and 3.2.
    Under ``targeted`` no ε up to 0.8 loses more than three points.

    Args:
        epsilon: Fraction ε in [0, 1] spread over all classes. The paper does not state its value; 0.1 is
            the customary one.
        targeted: Whether encoders have losses of their own.

    Raises:
        ValueError: If ε lies outside [0, 1].

    Example:
        >>> import bmlr
        >>> bmlr.methods.UniReshaping()
        UniReshaping(epsilon=0.1, targeted=False)
    """

    info: ClassVar[MethodInfo] = _info("Table IV")
    min_modalities: ClassVar[int] = 1
    conformance: ClassVar[Conformance] = Conformance(variants={"targeted": {"targeted": True}})

    def __init__(self, epsilon: float = 0.1, targeted: bool = False) -> None:
        super().__init__()
        self.epsilon, self.targeted = check_unit_interval("epsilon", epsilon), targeted

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss of the smoothed label; with ``targeted`` those of BMLR."""
        if self.targeted:
            return super().losses(output, targets)
        label = self.make_labels(output, {"fused": output.logits}, targets).labels["fused"]
        return Losses({"fused": output.task.label_loss(output.logits, label, targets)})

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
        """Multimodal and unimodal losses; every gradient flows everywhere."""
        logits = output.unimodal_logits
        labels, intensity = self.make_labels(output, logits, targets)
        return Losses(
            {
                "fused": output.task.loss(output.logits, targets),
                **_label_terms(output, logits, labels, targets),
            },
            _reshaped_fractions(output, intensity, targets),
        )


def _label_terms(
    output: Output, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], targets: Tensor
) -> dict[str, Tensor]:
    """Losses Lᵘ = CE(ỹᵘ, pᵘ) (Eq. 10) over the samples with modality u."""
    loss = output.task.label_loss
    return {name: loss(logits[name], labels[name], targets, output.mask(name)) for name in logits}


def _reshaped_fractions(output: Output, intensity: Mapping[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Fraction of reshaped labels per modality."""
    fractions = {}
    for name, xi in intensity.items():
        mask = output.task.counted(targets, output.mask(name))
        choices = None if mask is None else classification(output.task).choice_mask(mask)
        fractions[f"reshaped_{name}"] = masked_mean((xi > 0).to(xi.dtype), choices)
    return fractions
