"""Means, standard deviations, bootstrap intervals and ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import check_integer
from bmlr.runs import RunRecord, read_predictions
from bmlr.tasks import metric_form

_BLOCK = 1 << 16  # numbers drawn at a time by the bootstrap: all at once take gigabytes for a large test split


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
    """Difference of the mean multimodal score to the baseline, with its bootstrap interval.

    Attributes:
        mean: The difference; positive where the metric is larger, also of errors.
        low: Lower end of the interval; None where there is too little to resample.
        high: Upper end.
        over: Axes that were resampled: seeds and samples, samples, seeds, or nothing.
        seeds: Seeds that both have.
        metric: Name of the metric.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    seeds: tuple[int, ...]
    metric: str = "accuracy"

    @property
    def side(self) -> int:
        """1 where the interval lies above zero, −1 below; 0 else.

        Example:
            >>> Difference(0.05, 0.011, 0.09, "seeds", (0, 1)).side, Difference(0.05, None, None, "", (0,)).side
            (1, 0)
        """
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def text(self, digits: int | None = None, *, mean: bool = True, interval: bool = True) -> str:
        """The difference, of rates in points, with its interval; one of them alone without the other.

        Example:
            >>> Difference(0.05, 0.011, 0.09, "seeds", (0, 1)).text(), Difference(0.05, None, None, "", (0,)).text()
            ('+5.0 [+1.1, +9.0]', '+5.0')
        """
        form = metric_form(self.metric)
        digits = form.digits if digits is None else digits
        texts = [f"{form.factor * self.mean:+.{digits}f}"] if mean else []
        if interval and self.low is not None and self.high is not None:
            texts.append(f"[{form.factor * self.low:+.{digits}f}, {form.factor * self.high:+.{digits}f}]")
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
        first: Correctness, or error, of a method's predictions, shape (seeds, samples); with one column, its scores.
        second: The same of the baseline, for the same seeds and samples.
        n_resamples: Number of resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; None for a single value, which cannot be resampled.

    Raises:
        ValueError: If the shapes differ or ``n_resamples`` is below two.

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

    check_integer("n_resamples", n_resamples, 2)
    if np.shape(first) != np.shape(second) or np.ndim(first) != 2 or not np.size(first):
        raise ValueError(
            "`first` and `second` should have one shape (seeds, samples). "
            f"Found {np.shape(first)} and {np.shape(second)}."
        )
    gains = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if gains.size == 1:
        return None
    columns = gains.shape[1]
    if np.ptp(gains) == 0:
        value = float(gains.flat[0])
        are_hits = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
        if columns == 1 or not are_hits:
            return value, value
        unseen = float(binomtest(0, columns).proportion_ci(level, "wilson").high)
        return max(-1.0, value - unseen), min(1.0, value + unseen)
    axes = [np.arange(length) for length in gains.shape if length > 1]  # scipy refuses an axis of length one
    values = gains.squeeze()

    def mean_of(*drawn: NDArray[Any], axis: int) -> Any:
        counts = [_count_draws(indices, length) for indices, length in zip(drawn, values.shape, strict=True)]
        sums = counts[-1] @ values.T
        return (sums if len(counts) == 1 else (counts[0] * sums).sum(axis)) / values.size

    interval = bootstrap(
        axes, mean_of, n_resamples=n_resamples, batch=max(1, _BLOCK // columns), vectorized=True, paired=False,
        confidence_level=level, method="percentile", random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def _count_draws(drawn: NDArray[Any], length: int) -> NDArray[Any]:
    """How often each index below ``length`` is in each row of ``drawn``, shape (rows, length)."""
    places = drawn + length * np.arange(len(drawn))[:, None]
    return np.bincount(places.ravel(), minlength=length * len(drawn)).reshape(-1, length)


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


@dataclasses.dataclass(frozen=True)
class RankTest:
    """Test of mean ranks over data sets.

    Attributes:
        ranks: Mean rank of each method, 1 for the best.
        data_sets: Number of data sets.
        p_value: Of Friedman's test, whose hypothesis is that all methods are equal; None of fewer than three methods or
            two data sets.
        critical_difference: Nemenyi's: mean ranks that differ by less are not told apart; None as for ``p_value``.
    """

    ranks: pd.Series[float]
    data_sets: int
    p_value: float | None
    critical_difference: float | None


def rank_test(scores: pd.DataFrame, *, level: float = 0.95) -> RankTest:
    r"""Mean ranks with Friedman's test and Nemenyi's critical difference.

    Of k methods over N data sets the critical difference is

    .. math::
        q\,\sqrt{\frac{k (k + 1)}{6 N}},

    q being the quantile of the studentised range of k means, divided by √2 (Demšar, *Statistical comparisons of
    classifiers over multiple data sets*, JMLR 7, 2006, Sec. 3.2.2). Few data sets and many methods make it large.

    Args:
        scores: A row per method, a column per data set; larger is better. A data set that some method lacks is left
            out.
        level: Confidence level of the critical difference.

    Raises:
        ValueError: If no data set has all methods.

    Example:
        >>> import pandas as pd
        >>> found = rank_test(pd.DataFrame([[0.7, 0.8, 0.9], [0.6, 0.7, 0.8], [0.5, 0.6, 0.7]], index=["a", "b", "c"]))
        >>> found.ranks.tolist(), round(found.critical_difference, 2), round(found.p_value, 2)
        ([1.0, 2.0, 3.0], 1.91, 0.05)
    """
    from scipy.stats import friedmanchisquare, studentized_range

    ranks, complete = mean_ranks(scores), scores.dropna(axis=1)
    methods, data_sets = complete.shape
    if methods < 3 or data_sets < 2:
        return RankTest(ranks, data_sets, None, None)
    quantile = float(studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return RankTest(
        ranks,
        data_sets,
        float(friedmanchisquare(*complete.to_numpy(dtype=float)).pvalue),
        quantile * math.sqrt(methods * (methods + 1) / (6 * data_sets)),
    )


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
    metric = str(pairs[0][0].finished_result.get("metric", "accuracy"))
    scores = np.array([[record.finished_result["test"][metric] for record in records] for records in pairs])
    by_sample = _sample_scores(pairs[0], pairs[1], metric)
    if by_sample is not None:
        interval = bootstrap_difference(*by_sample, n_resamples=n_resamples, seed=seed)
        over = "seeds and samples" if len(seeds) > 1 else "samples"
    else:
        interval = bootstrap_difference(*scores[:, :, None], n_resamples=n_resamples, seed=seed)
        over = "seeds" if len(seeds) > 1 else "nothing"
    low, high = (None, None) if interval is None else interval
    return Difference(float((scores[0] - scores[1]).mean()), low, high, over, seeds, metric)


def _sample_scores(
    first: Sequence[RunRecord], second: Sequence[RunRecord], metric: str
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Correctness or absolute error of each prediction, shape (seeds, samples).

    None unless all runs predicted the same samples, and for a metric that is no mean over samples.
    """
    score = _SAMPLE_SCORES.get(metric)
    if score is None:
        return None
    try:
        tables = [[read_predictions(record.directory) for record in records] for records in (first, second)]
    except FileNotFoundError:
        return None
    targets = tables[0][0]["targets"]
    if any(not np.array_equal(table["targets"], targets) for group in tables for table in group):
        return None
    counted = targets >= 0 if metric == "accuracy" else np.ones(len(targets), dtype=bool)
    scores = [np.stack([score(table["fused"], targets)[counted] for table in group]) for group in tables]
    return scores[0], scores[1]


def _hits(predicted: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    hits: NDArray[Any] = predicted == targets
    return hits


def _absolute_errors(predicted: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    errors: NDArray[Any] = np.abs(predicted.astype(np.float64) - targets).reshape(len(targets), -1).mean(axis=1)
    return errors


#: Metrics that are means over samples.
_SAMPLE_SCORES = {"accuracy": _hits, "mae": _absolute_errors}
