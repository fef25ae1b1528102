"""Intervals of means over samples, and of functions of several means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from bmlr._checks import check_integer
from bmlr.diagnosis.measures import wilson_interval
from bmlr.tables import format_percent

Statistic: TypeAlias = Callable[[Mapping[str, float]], float]


class IntervalEstimate(NamedTuple):
    """A number with its interval.

    Attributes:
        value: Value on the samples themselves.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def percent(self) -> str:
        """The number and its interval in per cent; a dash for NaN."""
        return format_percent(self.value, (self.low, self.high))

    def as_dict(self) -> dict[str, float | None]:
        """The three numbers for JSON, with None for NaN and infinity."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


class ResampledMeans:
    """Means of several columns over the same bootstrap resamples of the samples.

    The common resamples make functions of columns paired. The interval of a proportion (a column of zeros and ones) is
    Wilson's, that of a difference of two is Newcombe's: resamples of six hits are six hits, and would pass for
    certainty. (Differences between runs, resampled over seeds too, are :func:`bmlr.benchmark.bootstrap_difference`.)

    Args:
        columns: Values per sample by name, shape (N,) each; NaN excludes a sample from a column.
        n_resamples: Number of resamples.
        level: Level of the percentile intervals.
        seed: Seed of the resamples.

    Raises:
        ValueError: If there is no sample, lengths differ or a parameter is out of range.

    Example:
        >>> import numpy as np
        >>> resampled = ResampledMeans({"a": np.array([1.0, 0, 1, 1]), "b": np.array([0.0, 0, 1, np.nan])})
        >>> resampled.means["a"], round(resampled.means["b"], 3)
        (0.75, 0.333)
        >>> resampled.estimate(lambda means: means["a"] - means["b"]).low >= 0
        True
    """

    def __init__(
        self, columns: Mapping[str, np.ndarray], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
    ) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise ValueError(f"`columns` should have one length above zero. Found {lengths}.")
        if not 0 < level < 1:
            raise ValueError(f"Parameter `level` should lie between 0 and 1. Found `level = {level}`.")
        check_integer("n_resamples", n_resamples, 1)
        self.level = level
        table = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)
        counted = ~np.isnan(table)
        table = np.where(counted, table, 0.0)
        rng, size = np.random.default_rng(seed), len(table)
        resampled = np.empty((n_resamples, len(columns)))
        for row in range(n_resamples):
            # Counts in place of indexing: one product per resample, without a copy of the table.
            weights = np.bincount(rng.integers(size, size=size), minlength=size).astype(np.float64)
            resampled[row] = _quotient(weights @ table, weights @ counted)
        counts = counted.sum(0)
        means = _quotient(table.sum(0), counts.astype(np.float64))
        self.means = {name: float(value) for name, value in zip(columns, means, strict=True)}
        is_proportion = ((table == 0) | (table == 1)).all(0) & (counts > 0)
        #: Number of samples of each proportion.
        self.proportions = {
            name: int(count) for name, count, binary in zip(columns, counts, is_proportion, strict=True) if binary
        }
        self.resampled = {name: resampled[:, column] for column, name in enumerate(columns)}

    def add(self, means: ResampledMeans, prefix: str) -> None:
        """Add the means of other samples, their names prefixed.

        Both need equally many resamples. They are treated as independent; if they come from the same samples, intervals
        of their differences are wider than necessary.
        """
        self.means |= {prefix + name: value for name, value in means.means.items()}
        self.resampled |= {prefix + name: values for name, values in means.resampled.items()}
        self.proportions |= {prefix + name: count for name, count in means.proportions.items()}

    def estimate(self, statistic: str | Statistic) -> IntervalEstimate:
        """Compute a statistic of the means and its interval.

        A statistic is the name of a mean, or a function of the means by name.

        Resamples with an undefined statistic are excluded; if all are, the interval is NaN.
        """
        if isinstance(statistic, str) and statistic in self.proportions:
            rate = self.means[statistic]
            return IntervalEstimate(rate, *wilson_interval(rate, self.proportions[statistic], self.level))
        compute: Statistic = (lambda means: means[statistic]) if isinstance(statistic, str) else statistic
        rows = (dict(zip(self.resampled, row, strict=True)) for row in zip(*self.resampled.values(), strict=True))
        values = np.array([compute(row) for row in rows])
        values = values[np.isfinite(values)]
        tail = 50 * (1 - self.level)
        low, high = np.percentile(values, [tail, 100 - tail]) if len(values) else (math.nan, math.nan)
        return IntervalEstimate(float(compute(self.means)), float(low), float(high))

    def difference(self, first: str, second: str) -> IntervalEstimate:
        """Difference of two means and its interval, as :meth:`estimate` gives it.

        Of two proportions the interval is Newcombe's for paired samples (Statistics in Medicine 17, 1998, method 10),
        with the correlation of the resampled means.
        """
        if not {first, second} <= self.proportions.keys():
            return self.estimate(lambda means: means[first] - means[second])
        a, b = self.estimate(first), self.estimate(second)
        spreads = [float(self.resampled[name].std()) for name in (first, second)]
        correlation = float(np.corrcoef(self.resampled[first], self.resampled[second])[0, 1]) if all(spreads) else 0.0

        def distance(towards: float, away: float) -> float:
            return math.sqrt(max(towards**2 - 2 * correlation * towards * away + away**2, 0.0))

        value = a.value - b.value
        low = value - distance(a.value - a.low, b.high - b.value)
        return IntervalEstimate(value, low, value + distance(a.high - a.value, b.value - b.low))


def _quotient(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    quotient: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return quotient
