"""Bootstrap intervals of means over samples, and of functions of several means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from bmlr._checks import check_integer

Statistic: TypeAlias = Callable[[Mapping[str, float]], float]


class IntervalEstimate(NamedTuple):
    """A number with its bootstrap interval.

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

    def as_dict(self) -> dict[str, float | None]:
        """The three numbers for JSON, with None for NaN and infinity."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


class ResampledMeans:
    """Means of several columns over the same bootstrap resamples of the samples.

    The common resamples make differences and quotients of columns paired. (Differences between runs, resampled over
    seeds too, are :func:`bmlr.benchmark.bootstrap_difference`.)

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
        means = _quotient(table.sum(0), counted.sum(0).astype(np.float64))
        self.means = {name: float(value) for name, value in zip(columns, means, strict=True)}
        self.resampled = {name: resampled[:, column] for column, name in enumerate(columns)}

    def add(self, means: ResampledMeans, prefix: str) -> None:
        """Add the means of other samples, their names prefixed.

        Both need equally many resamples. They are treated as independent; if they come from the same samples, intervals
        of their differences are wider than necessary.
        """
        self.means |= {prefix + name: value for name, value in means.means.items()}
        self.resampled |= {prefix + name: values for name, values in means.resampled.items()}

    def estimate(self, statistic: str | Statistic) -> IntervalEstimate:
        """Compute a statistic of the means and its interval.

        A statistic is the name of a mean, or a function of the means by name.

        Resamples with an undefined statistic are excluded; if all are, the interval is NaN.
        """
        compute: Statistic = (lambda means: means[statistic]) if isinstance(statistic, str) else statistic
        rows = (dict(zip(self.resampled, row, strict=True)) for row in zip(*self.resampled.values(), strict=True))
        values = np.array([compute(row) for row in rows])
        values = values[np.isfinite(values)]
        tail = 50 * (1 - self.level)
        low, high = np.percentile(values, [tail, 100 - tail]) if len(values) else (math.nan, math.nan)
        return IntervalEstimate(float(compute(self.means)), float(low), float(high))


def _quotient(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    quotient: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return quotient
