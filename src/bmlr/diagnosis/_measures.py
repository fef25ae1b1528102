"""The measures of balance, as pure functions of what a model says of every sample."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_integer

Statistic: TypeAlias = Callable[[Mapping[str, float]], float]


def accuracy(predictions: Tensor, targets: Tensor, mask: Tensor | None = None) -> float:
    """Share of samples whose class is predicted; NaN where no sample counts.

    Args:
        predictions: Predicted classes, shape (N,).
        targets: Class indices, shape (N,).
        mask: Boolean, shape (N,): the samples that count; None counts all.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([True, False, True]))
        0.5
    """
    hits = predictions == targets
    return _mean(hits.double(), mask)


def accuracy_ratio(first: float, second: float) -> float:
    """Quotient of two modalities' accuracies alone: 1 is balanced (the A/V ratio of BMLR's evaluation).

    Infinite where only the second is zero, NaN where both are or one is unknown.

    Example:
        >>> accuracy_ratio(0.9, 0.6)
        1.5
    """
    if second == 0:
        return math.inf if first > 0 else math.nan
    return first / second


def conditional_utilisation(full: float, without: float) -> float:
    r"""Share of the accuracy that is lost where a modality is left out.

    It is :math:`(A(S) - A(S \setminus u)) / A(S)`, the conditional utilisation rate of Wu et al., "Characterizing and
    Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural Networks" (ICML 2022); with removal by shuffling
    also the perceptual score of Gat et al. (NeurIPS 2021), normalised by the model's accuracy. Negative where the
    model is better without; NaN where it is never right.

    Args:
        full: Accuracy with all modalities.
        without: Accuracy on the same samples with one left out.

    Example:
        >>> conditional_utilisation(0.75, 0.375)
        0.5
    """
    return (full - without) / full if full else math.nan


def confidence_gap(first: Tensor, second: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """How far two modalities' confidences in the true class are apart: mean size and mean of the difference.

    The means over samples of :math:`|p^u_y - p^v_y|` and :math:`p^u_y - p^v_y`. Where OGM-GE (Peng et al., CVPR 2022)
    and BMLR form the ratio of these probabilities, the difference is bounded and sums up well over samples.

    Args:
        first: Probability of the true class by the first modality alone, shape (N,).
        second: The same by the second modality.
        mask: Boolean, shape (N,): the samples that have both; None counts all.

    Returns:
        Mean absolute and mean signed difference; NaN where no sample counts.

    Example:
        >>> import torch
        >>> confidence_gap(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.5]))
        (0.375, 0.125)
    """
    difference = first.double() - second.double()
    return _mean(difference.abs(), mask), _mean(difference, mask)


def changed_share(with_all: Tensor, without: Tensor, mask: Tensor | None = None) -> float:
    """Share of samples whose predicted class is another one after a modality is removed; NaN where none counts.

    Unlike the loss of accuracy it also sees a modality that moves predictions from one wrong class to another.

    Args:
        with_all: Predicted classes with all modalities, shape (N,).
        without: Predicted classes without one.
        mask: Boolean, shape (N,): the samples that count; None counts all.

    Example:
        >>> import torch
        >>> changed_share(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 0]))
        0.5
    """
    return _mean((with_all != without).double(), mask)


def shapley_values(values: Mapping[frozenset[str], Tensor], empty: Tensor) -> dict[str, Tensor]:
    r"""Shapley value of each modality, exact over all subsets.

    .. math:: \phi_u = \sum_{S \not\ni u} \frac{|S|!\,(M - |S| - 1)!}{M!} \bigl( v(S \cup u) - v(S) \bigr)

    (Shapley, 1953; for the modalities of a network SHAPE of Hu et al., IJCAI 2022, and the sample-level valuation of
    Wei et al., CVPR 2024). The values add up to :math:`v(\text{all}) - v(\emptyset)`.

    Args:
        values: v(S) for each of the 2^M − 1 subsets that are not empty; scalars, or of shape (N,) per sample.
        empty: :math:`v(\emptyset)`, the same shape: what is known without any modality.

    Raises:
        ValueError: If a subset is missing.

    Example:
        >>> import torch
        >>> v = {frozenset({"a"}): 0.75, frozenset({"v"}): 0.5, frozenset({"a", "v"}): 1.0}
        >>> shapley_values({s: torch.tensor(x) for s, x in v.items()}, torch.tensor(0.25))
        {'a': tensor(0.5000), 'v': tensor(0.2500)}
    """
    names = sorted(set[str]().union(*values))
    missing = [set(subset) for subset in subsets_of(names) if subset not in values]
    if missing:
        raise ValueError(f"`values` should hold every subset of {names}. Missing: {missing}.")
    known = {**values, frozenset[str](): empty}
    shares = {}
    for u in names:
        share = torch.zeros_like(empty)
        for subset in [s for s in known if u not in s]:
            weight = 1 / (len(names) * math.comb(len(names) - 1, len(subset)))
            share = share + weight * (known[subset | {u}] - known[subset])
        shares[u] = share
    return shares


def subsets_of(modalities: Sequence[str]) -> list[frozenset[str]]:
    """All subsets of the modalities but the empty one, smallest first.

    Example:
        >>> [sorted(subset) for subset in subsets_of(["audio", "video"])]
        [['audio'], ['video'], ['audio', 'video']]
    """
    return [
        frozenset(chosen)
        for size in range(1, len(modalities) + 1)
        for chosen in itertools.combinations(modalities, size)
    ]


def recovered_share(reached: float, attainable: float, chance: float) -> float:
    """Share of what training on a modality alone gains over chance that the joint model's encoder holds as well.

    It is :math:`(A_{joint} - c) / (A_{alone} - c)`: 1 for an encoder as good as one trained alone, 0 for one that
    knows no more than the most frequent class. NaN where training alone gains nothing.

    Args:
        reached: Accuracy of the modality in the joint model.
        attainable: Accuracy after training on it alone.
        chance: Rate of the most frequent class.

    Example:
        >>> round(recovered_share(0.5, 0.7, 0.1), 3)
        0.667
    """
    return (reached - chance) / (attainable - chance) if attainable > chance else math.nan


class Estimate(NamedTuple):
    """A number with its bootstrap interval.

    Attributes:
        value: The number itself.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float | None]:
        """The three numbers as plain data; None where one is not finite, which JSON does not know."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


class Bootstrap:
    """Resampled means of several values per sample; all of them from the same resamples, so that they are paired.

    Args:
        columns: Values per sample by name, shape (N,) each; NaN where a sample does not count.
        resamples: Number of resamples.
        level: Level of the intervals (percentiles).
        seed: Seed of the resamples.

    Raises:
        ValueError: If there is no sample, lengths differ or a parameter is out of its range.

    Example:
        >>> import numpy as np
        >>> bootstrap = Bootstrap({"a": np.array([1.0, 0, 1, 1]), "b": np.array([0.0, 0, 1, np.nan])})
        >>> bootstrap.means["a"], round(bootstrap.means["b"], 3)
        (0.75, 0.333)
        >>> bootstrap.estimate(lambda means: means["a"] - means["b"]).low >= 0
        True
    """

    def __init__(
        self, columns: Mapping[str, np.ndarray], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
    ) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise ValueError(f"`columns` should have one length above zero. Found {lengths}.")
        if not 0 < level < 1:
            raise ValueError(f"Parameter `level` should lie between 0 and 1. Found `level = {level}`.")
        check_integer("resamples", resamples, 1)
        self.level = level
        table = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)
        counted = ~np.isnan(table)
        table = np.where(counted, table, 0.0)
        rng, count = np.random.default_rng(seed), len(table)
        draws = np.empty((resamples, len(columns)))
        for row in range(resamples):
            weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
            draws[row] = _quotient(weights @ table, weights @ counted)
        means = _quotient(table.sum(0), counted.sum(0).astype(np.float64))
        self.means = {name: float(value) for name, value in zip(columns, means, strict=True)}
        self.draws = {name: draws[:, place] for place, name in enumerate(columns)}

    def beside(self, other: Bootstrap, prefix: str) -> Bootstrap:
        """This one with the means of another, of other samples or readings, under names with a prefix.

        Both should have as many resamples. They are taken to be independent, which for readings of the same samples
        makes the intervals of differences wider than they need be.
        """
        joined = copy.copy(self)
        joined.means = {**self.means, **{prefix + name: value for name, value in other.means.items()}}
        joined.draws = {**self.draws, **{prefix + name: values for name, values in other.draws.items()}}
        return joined

    def estimate(self, statistic: str | Statistic) -> Estimate:
        """A mean by its name, or a function of the means by name, with its percentile interval.

        Resamples in which the statistic is undefined are left out; with none left the interval is NaN.
        """
        of: Statistic = (lambda means: means[statistic]) if isinstance(statistic, str) else statistic
        rows = (dict(zip(self.draws, row, strict=True)) for row in zip(*self.draws.values(), strict=True))
        values = np.array([of(row) for row in rows])
        values = values[np.isfinite(values)]
        tail = 50 * (1 - self.level)
        low, high = np.percentile(values, [tail, 100 - tail]) if len(values) else (math.nan, math.nan)
        return Estimate(float(of(self.means)), float(low), float(high))


def _mean(values: Tensor, mask: Tensor | None) -> float:
    counted = values if mask is None else values[mask]
    return float(counted.mean()) if len(counted) else math.nan


def _quotient(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    quotient: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return quotient
