"""Label reshaping of BMLR (Eqs. 4 to 8) and the labels of its ablations."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own convention)

from bmlr._checks import (
    check_integer,
    check_positive,
    check_present,
    check_targets,
    check_unimodal_logits,
    check_unit_interval,
)
from bmlr.functional._precision import widened

#: Lower bound of the temperature T = α·λ of Eq. 5. Below it a softmax of distinct logits is one-hot to every
#: floating point type, so the bound changes a label only where the two largest logits differ by less than
#: about 2e-5; without it T underflows to zero and logits / T is undefined.
MINIMUM_TEMPERATURE = 1e-6


class ReshapedLabels(NamedTuple):
    """Reshaped labels and their reshaping intensity, by modality.

    Attributes:
        labels: The label ỹ of each modality, shape (B, C): non-negative, each row sums to one, no gradient.
        intensity: The reshaping intensity ξ of each modality, shape (B,), in [0, 1].
    """

    labels: dict[str, Tensor]
    intensity: dict[str, Tensor]


class _Ranking(NamedTuple):
    """Modalities of each sample by their confidence in the true class.

    Attributes:
        log_confidence: Log-probability of the true class, (B, M); NaN where the modality is absent.
        is_strongest: Whether none is above, boolean, (B, M).
        weakest: The smallest log-probability, (B, 1).
        gap: −log λ of the strongest modality, at most 0, (B, 1); NaN where an extreme is not finite.
    """

    log_confidence: Tensor
    is_strongest: Tensor
    weakest: Tensor
    gap: Tensor


def confidence_ratio(
    unimodal_logits: Mapping[str, Tensor],
    targets: Tensor,
    *,
    present: Mapping[str, Tensor] | None = None,
    log: bool = False,
) -> dict[str, Tensor]:
    r"""Confidence ratio of each modality in the true class (BMLR, Eq. 4).

    For two modalities a and v, with :math:`p^u = \mathrm{softmax}(\ell^u)`,

    .. math:: \lambda^a = p^a_y / p^v_y, \qquad \lambda^v = 1 / \lambda^a .

    With more than two (Sec. IV-F) the strongest and the weakest modality of each sample play a and v; the ratio
    of those between is 1. For a distribution y in place of a class the confidence is Σ_c y_c p_c, a choice of ours. The
    ratio is formed in log space: both probabilities may underflow, their quotient does not suffer.

    Args:
        unimodal_logits: Logits of each modality, shape (B, C) each; at least two modalities.
        targets: Class indices, shape (B,), or distributions over the classes, shape (B, C).
        present: Which samples have which modality, a boolean mask of shape (B,) per name; a name left out is
            always present. An absent modality is not ranked; its ratio is 1.
        log: Return log λ, which stays finite where λ leaves the range of the floating point type.

    Returns:
        λ (or log λ) per modality, shape (B,), without gradient, in the logits' type (float32 for half types).

    Raises:
        ValueError: If shapes, types, targets or names do not fit; the message names the argument.

    Example:
        >>> import torch
        >>> logits = {"audio": torch.tensor([[2.0, 0.0]]), "video": torch.tensor([[0.0, 0.0]])}
        >>> ratio = confidence_ratio(logits, torch.tensor([0]))
        >>> round(ratio["audio"].item(), 4), round(ratio["video"].item(), 4)
        (1.7616, 0.5677)
    """
    check_unimodal_logits(unimodal_logits, targets)
    logits = _working_precision(unimodal_logits)
    check_present(present, logits, len(targets))
    ranking = _rank(logits, targets, present)
    is_weakest = ranking.log_confidence == ranking.weakest
    log_ratios = torch.where(ranking.is_strongest, -ranking.gap, torch.where(is_weakest, ranking.gap, 0.0))
    ratios = {}
    for column, (name, values) in zip(log_ratios.unbind(1), logits.items(), strict=True):
        ratios[name] = (column if log else column.exp()).to(values.dtype)
    return ratios


def reshape_labels(
    unimodal_logits: Mapping[str, Tensor],
    targets: Tensor,
    *,
    alpha: float,
    beta: float,
    present: Mapping[str, Tensor] | None = None,
    keep_one_hot: bool = True,
    temperature: float | None = None,
) -> ReshapedLabels:
    r"""Reshape labels by the other modality's prediction (BMLR, Eqs. 4 to 8).

    For two modalities a and v and the confidence ratio λ of :func:`confidence_ratio`,

    .. math::
        d^a &= \mathrm{softmax}(\ell^v / T), \quad T = \alpha \lambda^v \qquad \text{(Eq. 5)} \\
        \xi^a &= 1 - 1/\lambda^a \ \text{ if } 1 < \lambda^a < 1/\beta, \text{ else } 0 \qquad \text{(Eq. 7)} \\
        \tilde y^a &= \xi^a d^a + (1 - \xi^a)\, y \qquad \text{(Eq. 8)}

    and the same with a and v exchanged. Since ξ is positive only for the more confident modality, at most one
    label of a sample is reshaped. The C × C matrices of Eqs. 6 and 8 act on a one-hot y and are never built:
    time and memory are O(B C).

    With more than two modalities (Sec. IV-F) the strongest and the weakest of each sample play a and v, those
    between keep the one-hot label.

    Choices where the paper is silent:

    * T is kept at or above :data:`MINIMUM_TEMPERATURE`.
    * β = 0 means no upper limit (the paper puts a tiny number in its place); β = 1 reshapes nothing.
    * Several modalities tied for the strongest place are all reshaped; of several tied for the weakest the mean
      logits are used. Results never depend on the order of the names. If all tie, nothing is reshaped.
    * Logits that are not finite (a class masked with −∞ is fine unless it is the true one) leave the one-hot
      label: a label is never NaN. The loss on such logits is, which is where training has to look.

    Args:
        unimodal_logits: Logits of each modality, shape (B, C) each; at least two modalities.
        targets: Class indices, shape (B,), or distributions over the classes, shape (B, C).
        alpha: Temperature factor α > 0.
        beta: Threshold β in [0, 1]: no reshaping where the ratio reaches 1/β.
        present: Which samples have which modality, a boolean mask of shape (B,) per name; a name left out is
            always present. An absent modality is not ranked and keeps the one-hot label.
        keep_one_hot: If False, the one-hot part of Eq. 8 is dropped wherever ξ > 0, which is the Vanilla-Reshape
            ablation of the paper's Table V.
        temperature: A temperature T > 0 in place of α λ (Eq. 5).

    Returns:
        The labels and the intensity ξ per modality, without gradient, in the logits' type (float32 for half types).

    Raises:
        ValueError: If a parameter, shape, type or target does not fit; the message names the argument.

    Example:
        >>> import torch
        >>> logits = {"audio": torch.tensor([[4.0, 0.0, 0.0]]), "video": torch.tensor([[1.0, 1.0, 0.0]])}
        >>> labels, intensity = reshape_labels(logits, torch.tensor([0]), alpha=1.0, beta=0.0)
        >>> labels["audio"].numpy().round(3)
        array([[0.705, 0.267, 0.027]], dtype=float32)
        >>> labels["video"].numpy().round(3)
        array([[1., 0., 0.]], dtype=float32)
        >>> round(intensity["audio"].item(), 3)
        0.562
    """
    alpha, beta = check_positive("alpha", alpha), check_unit_interval("beta", beta)
    check_unimodal_logits(unimodal_logits, targets)
    logits = _working_precision(unimodal_logits)
    check_present(present, logits, len(targets))
    ranking = _rank(logits, targets, present)
    # Few operations on all modalities at once: on a GPU each costs its launch, whatever its size.
    lower = math.log(beta) if beta > 0 else -math.inf
    inverse_ratio = F.threshold(ranking.gap, lower, 0.0).exp()  # 1/λ of the strongest modality; 1 where that is ≤ β
    factor = alpha * inverse_ratio if temperature is None else check_positive("temperature", temperature)
    prediction = _softened_weakest(logits, ranking, factor)
    # Not finite where two extremes are not: nothing is reshaped.
    xi = (ranking.is_strongest * (1 - inverse_ratio)).nan_to_num_(0.0, 0.0, 0.0).to(prediction.dtype)
    labels = _mix(prediction, (xi if keep_one_hot else xi.sign()).T, targets)
    return ReshapedLabels(_by_name(labels.unbind(0), logits), _by_name(xi.unbind(1), logits))


def cross_modal_labels(
    unimodal_logits: Mapping[str, Tensor], targets: Tensor, *, present: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Labels of the Uni-Distill ablation at its word (BMLR, Table V).

    The label is the other modality's plain prediction. With more than two it is the mean prediction of the others, a
    choice of ours: the paper runs this ablation with two. A prediction that is NaN counts as absent, and a sample whose
    other modalities are all absent keeps its one-hot label: a label is never NaN.

    Args:
        unimodal_logits: Logits of each modality, shape (B, C) each; at least two modalities.
        targets: Class indices, shape (B,), or distributions over the classes, shape (B, C).
        present: Which samples have which modality, as in :func:`reshape_labels`.

    Returns:
        A label per modality, shape (B, C), without gradient, in the logits' type (float32 for half types).

    Raises:
        ValueError: If shapes, types, targets or names do not fit; the message names the argument.

    Example:
        >>> import torch
        >>> logits = {"audio": torch.tensor([[9.0, 0.0]]), "video": torch.tensor([[0.0, 0.0]])}
        >>> cross_modal_labels(logits, torch.tensor([0]))["audio"]
        tensor([[0.5000, 0.5000]])
    """
    check_unimodal_logits(unimodal_logits, targets)
    logits = _working_precision(unimodal_logits)
    check_present(present, logits, len(targets))
    predictions = {name: values.softmax(1) for name, values in logits.items()}
    masks = {name: _mask(name, present, targets) & ~p[:, 0].isnan() for name, p in predictions.items()}
    predictions = {name: torch.where(masks[name][:, None], p, 0.0) for name, p in predictions.items()}
    labels = {}
    for name, values in logits.items():
        teachers = [teacher for teacher in logits if teacher != name]
        count = torch.stack([masks[teacher] for teacher in teachers]).sum(0)
        mean = torch.stack([predictions[teacher] for teacher in teachers]).sum(0) / count.clamp(min=1)[:, None]
        labels[name] = _mix(mean.to(values.dtype), (count > 0).to(values.dtype), targets)
    return labels


def smooth_labels(targets: Tensor, num_classes: int, *, epsilon: float, dtype: torch.dtype | None = None) -> Tensor:
    """Smoothed labels of the Uni-Reshaping ablation (BMLR, Table IV).

    Args:
        targets: Class indices, shape (B,), or distributions over the classes, shape (B, C).
        num_classes: Number of classes C.
        epsilon: Fraction ε in [0, 1] spread over all classes; the label is (1 − ε) y + ε / C.
        dtype: Type of the labels, PyTorch's default type if left out.

    Returns:
        Labels of shape (B, C).

    Raises:
        ValueError: If ε lies outside [0, 1], or the targets or the number of classes do not fit.

    Example:
        >>> import torch
        >>> smooth_labels(torch.tensor([1]), 4, epsilon=0.2)
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    epsilon = check_unit_interval("epsilon", epsilon)
    size = len(targets) if targets.ndim == 2 else targets.numel()
    check_targets(targets, size, check_integer("num_classes", num_classes, 2), soft=True)
    if targets.is_floating_point():
        return (1 - epsilon) * targets.to(dtype or targets.dtype) + epsilon / num_classes
    labels = torch.full(
        (len(targets), num_classes),
        epsilon / num_classes,
        dtype=dtype or torch.get_default_dtype(),
        device=targets.device,
    )
    return labels.scatter_(1, targets.long()[:, None], 1 - epsilon + epsilon / num_classes)


def _working_precision(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached logits in float32 or wider.

    Labels in half precision would not sum to one.
    """
    return {name: widened(values.detach()) for name, values in logits.items()}


def _mask(name: str, present: Mapping[str, Tensor] | None, like: Tensor) -> Tensor:
    if present is not None and name in present:
        return present[name]
    return torch.ones_like(like if like.ndim == 1 else like[:, 0], dtype=torch.bool)


def _rank(logits: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Tensor] | None) -> _Ranking:
    # Confidences far below one are the difference of large logits. Taking that difference in float64 costs a few
    # operations on (B,) vectors and keeps λ exact to 1e-7 where float32 alone would lose it (|logit| ≥ 16).
    wide = torch.float32 if targets.device.type == "mps" else torch.float64
    log_labels = targets.to(wide).log() if targets.is_floating_point() else None
    index = targets.long()[:, None]
    columns = []
    for values in logits.values():
        if log_labels is None:
            true = values.gather(1, index)
        else:
            true = (values.to(wide) + log_labels).logsumexp(1, keepdim=True)
        # The probability of the largest logit, 1 / Σ exp(ℓ − max ℓ), gives the normalisation.
        columns += [true, values.amax(1, keepdim=True), values.softmax(1).amax(1, keepdim=True)]
    true, largest, probability = torch.cat(columns, 1).to(wide).unflatten(1, (-1, 3)).unbind(2)
    log_confidence = true - largest + probability.log()
    if not present:
        weakest, strongest = log_confidence.aminmax(dim=1, keepdim=True)
    else:
        absent = ~torch.stack([_mask(name, present, targets) for name in logits], 1)
        weakest = log_confidence.masked_fill(absent, math.inf).amin(1, keepdim=True)
        strongest = log_confidence.masked_fill(absent, -math.inf).amax(1, keepdim=True)
        log_confidence = log_confidence.masked_fill(absent, math.nan)  # which equals neither extreme
    return _Ranking(log_confidence, log_confidence == strongest, weakest, weakest - strongest)


def _softened_weakest(logits: Mapping[str, Tensor], ranking: _Ranking, temperature: Tensor | float) -> Tensor:
    """Softened prediction of the weakest modality (Eq. 5), shape (B, C); zero where it would be NaN."""
    values = list(logits.values())
    if len(values) == 2:  # nothing to average: where two tie, nothing is reshaped
        weakest = torch.where(ranking.is_strongest[:, :1], values[1], values[0])
    else:
        is_weakest = (ranking.log_confidence == ranking.weakest).T[:, :, None]
        count = is_weakest.sum(0)  # more than one where several tie: their mean, exact where one stands alone
        tied = [torch.where(mask, value / count, 0.0) for mask, value in zip(is_weakest, values, strict=True)]
        weakest = functools.reduce(operator.add, tied)
    # Upper bound: an infinite T would turn a masked class, −∞ / T, into NaN.
    largest = torch.finfo(weakest.dtype).max
    if isinstance(temperature, Tensor):
        temperature = temperature.clamp(MINIMUM_TEMPERATURE, largest).to(weakest.dtype)
    else:
        temperature = min(max(temperature, MINIMUM_TEMPERATURE), largest)
    prediction = F.softmax((weakest - weakest.amax(1, keepdim=True)).div_(temperature), dim=1)
    return prediction.nan_to_num_(nan=0.0)


def _mix(prediction: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Label ξ d + (1 − ξ) y (Eq. 8), shape (…, B, C), of weights of shape (…, B)."""
    weight = weight[..., None]
    labels, rest = weight * prediction, 1 - weight
    if targets.is_floating_point():
        return labels.add_(rest * targets.to(weight.dtype))
    return labels.scatter_add_(-1, targets.long()[:, None].expand(rest.shape), rest)


def _by_name(values: Sequence[Tensor], logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor per modality, in the type of its logits."""
    return {name: value.to(like.dtype) for value, (name, like) in zip(values, logits.items(), strict=True)}
