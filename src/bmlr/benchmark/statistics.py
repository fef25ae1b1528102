"""Means, standard deviations, bootstrap intervals and ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bmlr.runs import RunRecord, read_predictions


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation over runs.

    Attributes:
        mean: Mean; NaN where no run defines the value.
        std: Sample standard deviation; None of a single run.
        runs: Number of runs that define the value.
    """

    mean: float
    std: float | None
    runs: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of mean fused accuracy to the baseline, with its bootstrap interval.

    Attributes:
        mean: The difference.
        low: Lower end of the interval; None where there is too little to resample.
        high: Upper end.
        over: Axes that were resampled: seeds and samples, samples, seeds, or nothing.
        seeds: Seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    seeds: tuple[int, ...]

    def text(self, digits: int = 1, *, mean: bool = True) -> str:
        """The difference in points with its interval; the interval alone without ``mean``.

        Example:
            >>> Difference(0.05, 0.011, 0.09, "seeds", (0, 1)).text(), Difference(0.05, None, None, "", (0,)).text()
            ('+5.0 [+1.1, +9.0]', '+5.0')
        """
        texts = [f"{100 * self.mean:+.{digits}f}"] if mean else []
        if self.low is not None and self.high is not None:
            texts.append(f"[{100 * self.low:+.{digits}f}, {100 * self.high:+.{digits}f}]")
        return " ".join(texts)


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Paired bootstrap interval of the mean difference of two methods.

    Seeds and test samples are resampled independently (percentile method), so the interval covers the draw of the test
    split as well as that of the training. With the usual three seeds it is too narrow: three values tell little of the
    variation between seeds. Where all predictions agree there is nothing to resample, and the interval would be a
    point; it then reaches as far as Wilson's interval of the share of samples that differ, seen in none.

    Args:
        first: Correctness of a method's predictions, shape (seeds, samples); with one column, its accuracies.
        second: The same of the baseline, for the same seeds and samples.
        n_resamples: Number of resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; None for a single value, which cannot be resampled.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> right = np.random.default_rng(0).random((3, 400)) < 0.8
        >>> [round(end, 3) for end in bootstrap_difference(right, right)]
        [-0.01, 0.01]
        >>> low, high = bootstrap_difference(right, right & (np.arange(400) % 10 > 0))
        >>> 0.05 < low < 0.08 < high < 0.11
        True
    """
    from scipy.stats import binomtest, bootstrap

    if np.shape(first) != np.shape(second) or np.ndim(first) != 2 or not np.size(first):
        raise ValueError(
            "`first` and `second` should have one shape (seeds, samples). "
            f"Found {np.shape(first)} and {np.shape(second)}."
        )
    gains = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if gains.size == 1:
        return None
    rows, columns = gains.shape
    if np.ptp(gains) == 0:
        value = float(gains.flat[0])
        if columns == 1 or value not in {-1.0, 0.0, 1.0}:
            return value, value
        unseen = float(binomtest(0, columns).proportion_ci(level, "wilson").high)
        return max(-1.0, value - unseen), min(1.0, value + unseen)
    # Scipy resamples the indices of rows and columns; it refuses an axis of length one.
    axes = [np.arange(length) for length in (rows, columns) if length > 1]

    def mean_of(*indices: NDArray[Any]) -> float:
        if len(indices) == 2:
            row_counts = np.bincount(indices[0], minlength=rows)
            column_counts = np.bincount(indices[1], minlength=columns)
            return float(row_counts @ gains @ column_counts / (rows * columns))
        return float(gains.reshape(-1)[indices[0]].mean())

    interval = bootstrap(
        axes, mean_of, n_resamples=n_resamples, vectorized=False, paired=False, confidence_level=level,
        method="percentile", random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def mean_ranks(accuracies: pd.DataFrame) -> pd.Series[float]:
    """Mean rank of each method over data sets.

    Rank 1 is best; equal values share the mean of their ranks.

    Args:
        accuracies: A row per method, a column per data set. A data set that some method lacks is left out.

    Raises:
        ValueError: If no data set has all methods.

    Example:
        >>> import pandas as pd
        >>> mean_ranks(pd.DataFrame({"a": [0.5, 0.7], "b": [0.6, 0.6]}, index=["Joint", "BMLR"])).tolist()
        [1.75, 1.25]
    """
    complete = accuracies.dropna(axis=1)
    if not complete.size:
        raise ValueError("`accuracies` should hold at least one data set with all methods. Found none.")
    from scipy.stats import rankdata

    ranks = rankdata(-complete.to_numpy(dtype=float), axis=0)
    return pd.Series(ranks.mean(axis=1), index=complete.index, name="mean rank")


def estimate(values: Iterable[float | None]) -> Estimate:
    """Mean and sample standard deviation of the defined values.

    Example:
        >>> estimate([1.0, None, 3.0])
        Estimate(mean=2.0, std=1.4142135623730951, runs=2)
    """
    defined = np.array([value for value in values if value is not None and not math.isnan(value)], dtype=np.float64)
    if not len(defined):
        return Estimate(math.nan, None, 0)
    return Estimate(float(defined.mean()), float(defined.std(ddof=1)) if len(defined) > 1 else None, len(defined))


def difference_of(
    members: Sequence[RunRecord], baseline: Sequence[RunRecord], *, n_resamples: int = 2000, seed: int = 0
) -> Difference | None:
    """Difference of one method's runs to another's.

    It is taken over the seeds that both have; None without a common one.

    Raises:
        ValueError: If the predictions of a run are damaged.
    """
    first, second = (
        {int(record.config["seed"]): record for record in records if record.result is not None}
        for records in (members, baseline)
    )
    seeds = tuple(sorted(set(first) & set(second)))
    if not seeds:
        return None
    pairs = [[records[seed] for seed in seeds] for records in (first, second)]
    accuracies = np.array([[record.finished_result["test"]["accuracy"] for record in records] for records in pairs])
    correct = _correct_samples(*pairs)
    if correct is not None:
        interval = bootstrap_difference(*correct, n_resamples=n_resamples, seed=seed)
        over = "seeds and samples" if len(seeds) > 1 else "samples"
    else:
        interval = bootstrap_difference(*accuracies[:, :, None], n_resamples=n_resamples, seed=seed)
        over = "seeds" if len(seeds) > 1 else "nothing"
    low, high = (None, None) if interval is None else interval
    return Difference(float((accuracies[0] - accuracies[1]).mean()), low, high, over, seeds)


def _correct_samples(
    first: Sequence[RunRecord], second: Sequence[RunRecord]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Correctness of each prediction, shape (seeds, samples).

    None unless all runs predicted the same samples.
    """
    try:
        tables = [[read_predictions(record.directory) for record in records] for records in (first, second)]
    except FileNotFoundError:
        return None
    targets = tables[0][0]["targets"]
    if any(not np.array_equal(table["targets"], targets) for group in tables for table in group):
        return None
    correct = [np.stack([table["fused"] == table["targets"] for table in group]) for group in tables]
    return correct[0], correct[1]
