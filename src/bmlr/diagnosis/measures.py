"""Measures of balance between modalities, as pure functions of predictions and accuracies."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

__all__ = [
    "accuracy",
    "accuracy_ratio",
    "conditional_utilisation",
    "confidence_gap",
    "recovered_fraction",
    "wilson_interval",
]


def accuracy(predictions: Tensor, targets: Tensor, mask: Tensor | None = None) -> float:
    """Fraction of correct predictions; NaN for an empty mask.

    Args:
        predictions: Predicted classes, shape (N,).
        targets: Class indices, shape (N,).
        mask: Boolean, shape (N,): the samples to count; None counts all.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([True, False, True]))
        0.5
    """
    return _mean((predictions == targets).double(), mask)


def accuracy_ratio(first: float, second: float) -> float:
    """Quotient of two modalities' accuracies alone; 1 is balanced.

    It is the A/V ratio of BMLR (Table III).

    Infinite if only the second is zero; NaN if both are zero or one is NaN.

    Example:
        >>> accuracy_ratio(0.9, 0.6)
        1.5
    """
    if second == 0:
        return math.inf if first > 0 else math.nan
    return first / second


def conditional_utilisation(full: float, without: float) -> float:
    r"""Fraction of the accuracy lost without a modality.

    It is :math:`(A(S) - A(S \setminus u)) / A(S)`, the conditional utilisation rate of Wu et al., "Characterizing and
    Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural Networks" (ICML 2022); with removal by shuffling
    also the perceptual score of Gat et al. (NeurIPS 2021), normalised by the model's accuracy. Negative if the model is
    better without the modality; NaN if ``full`` is zero.

    Args:
        full: Accuracy with all modalities.
        without: Accuracy on the same samples without one modality.

    Example:
        >>> conditional_utilisation(0.75, 0.375)
        0.5
    """
    return (full - without) / full if full else math.nan


def confidence_gap(first: Tensor, second: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """Mean absolute and mean signed difference of two modalities' confidences.

    The means over samples of :math:`|p^u_y - p^v_y|` and :math:`p^u_y - p^v_y`. OGM-GE (Peng et al., CVPR 2022) and
    BMLR form the ratio of these probabilities; the difference is bounded, so that its mean is stable.

    Args:
        first: Probability of the true class by the first modality alone, shape (N,).
        second: The same by the second modality.
        mask: Boolean, shape (N,): the samples with both; None counts all.

    Returns:
        Mean absolute and mean signed difference; NaN for an empty mask.

    Example:
        >>> import torch
        >>> confidence_gap(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.5]))
        (0.375, 0.125)
    """
    difference = first.double() - second.double()
    return _mean(difference.abs(), mask), _mean(difference, mask)


def recovered_fraction(reached: float, attainable: float, chance: float) -> float:
    """Fraction of the attainable gain over chance reached by the joint model.

    It is :math:`(A_{joint} - c) / (A_{alone} - c)`: 1 for a modality as good as trained alone, 0 for chance. NaN if
    training alone gains nothing.

    Args:
        reached: Accuracy of the modality in the joint model.
        attainable: Accuracy after training on the modality alone.
        chance: Rate of the most frequent class.

    Example:
        >>> round(recovered_fraction(0.5, 0.7, 0.1), 3)
        0.667
    """
    return (reached - chance) / (attainable - chance) if attainable > chance else math.nan


def wilson_interval(rate: float, samples: int, level: float = 0.95) -> tuple[float, float]:
    r"""Wilson's interval of a proportion, such as the accuracy on one test split.

    Near 0 and 1 and for few samples it stays honest where a bootstrap interval shrinks to a point:

    .. math::
        \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    (Wilson, Journal of the American Statistical Association 22, 1927).

    Args:
        rate: The proportion p.
        samples: Number of samples n.
        level: Level of the interval; z is its quantile of the normal distribution.

    Returns:
        The lower and the upper end; NaN without a sample.

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 6)]
        [0.61, 1.0]
    """
    if not samples or math.isnan(rate):
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = rate + z**2 / (2 * samples)
    spread = z * math.sqrt(rate * (1 - rate) / samples + z**2 / (4 * samples**2))
    scale = 1 + z**2 / samples
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)


def _mean(values: Tensor, mask: Tensor | None) -> float:
    counted = values if mask is None else values[mask]
    return float(counted.mean()) if len(counted) else math.nan
