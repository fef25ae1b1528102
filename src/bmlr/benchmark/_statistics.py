"""Means, deviations, paired bootstrap intervals and ranks of finished runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import check_integer, nearest_name
from bmlr.benchmark._specification import parse_method
from bmlr.benchmark._store import RunRecord
from bmlr.training import read_predictions

#: Where the files are, which does not make other data.
_PLACES = {"root", "cache"}
#: Options of the trainer that cannot change a result.
_IDLE = {"progress", "num_workers", "checkpoint_every", "on_nonfinite", "max_nonfinite"}
#: Data passes may differ by this share and still count as one budget: methods sample a little more or less.
_BUDGET_TOLERANCE = 0.25


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
        over: What was resampled: seeds and samples, samples, seeds, or nothing.
        seeds: Seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    seeds: tuple[int, ...]

    def text(self, digits: int = 1, *, mean: bool = True) -> str:
        """The difference in points with its interval, where it has one; the interval alone without ``mean``.

        Example:
            >>> Difference(0.05, 0.011, 0.09, "seeds", (0, 1)).text(), Difference(0.05, None, None, "", (0,)).text()
            ('+5.0 [+1.1, +9.0]', '+5.0')
        """
        parts = [f"{100 * self.mean:+.{digits}f}"] if mean else []
        if self.low is not None and self.high is not None:
            parts.append(f"[{100 * self.low:+.{digits}f}, {100 * self.high:+.{digits}f}]")
        return " ".join(parts)


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """What the runs of one method come to.

    Attributes:
        label: Its specification.
        title: Its name in the literature, with parameters.
        seeds: Seeds of the finished runs.
        failed: Number of runs that failed.
        unfinished: Number of runs that are not finished for another reason.
        accuracy: Fused accuracy.
        unimodal: Accuracy of each modality.
        ratio: Quotient of accuracies of each pair of modalities.
        last_epoch: Fused accuracy after the last epoch, under the paper protocol.
        best_on_test: Largest fused test accuracy of all epochs, under the paper protocol.
        difference: To the baseline; None for the baseline itself or without one.
        epochs: Epochs.
        data_passes: Samples seen in training over the size of the training part.
        minutes: Wall-clock time of a run.
    """

    label: str
    title: str
    seeds: tuple[int, ...]
    failed: int
    unfinished: int
    accuracy: Estimate
    unimodal: Mapping[str, Estimate]
    ratio: Mapping[str, Estimate]
    last_epoch: Estimate
    best_on_test: Estimate
    difference: Difference | None
    epochs: int | None
    data_passes: Estimate
    minutes: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods compared on the same data under the same protocol.

    Attributes:
        data: Name of the data set.
        protocol: Protocol.
        samples: Samples of the test part.
        majority_rate: Share of its most frequent class.
        modalities: Names of the modalities.
        pairs: Names of the ratios.
        baseline: Label of the method the differences are to; None without one.
        methods: The methods, in the order given.
        notes: What a reader has to know before comparing numbers.
    """

    data: str
    protocol: str
    samples: int
    majority_rate: float
    modalities: tuple[str, ...]
    pairs: tuple[str, ...]
    baseline: str | None
    methods: tuple[MethodSummary, ...]
    notes: tuple[str, ...]


class IncomparableError(ValueError):
    """Runs do not belong into one table; the message says why."""


def compare_runs(
    records: Iterable[RunRecord],
    *,
    baseline: str | None = None,
    force: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare methods by their finished runs; failed ones are counted.

    Args:
        records: Runs, grouped by their labels; those without a label are grouped by their settings.
        baseline: Label or title of the method the differences are to.
        force: Compare runs of different data, protocol or budget too; a note says so.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        IncomparableError: If the runs are of different data, protocol or budget.
        ValueError: If no run is finished, a method has a seed twice, or there is no such baseline.
    """
    check_integer("resamples", resamples, 1)
    groups = group_records(records)
    finished = [record for members in groups.values() for record in members if record.result is not None]
    if not finished:
        reasons = [record.failure["error"] for members in groups.values() for record in members if record.failure]
        raise ValueError(
            f"There is no finished run to compare.{f' The first failed with {reasons[0]}' if reasons else ''}"
        )
    obstacles = [*_data_differences(finished), *_budget_differences(groups)]
    if obstacles and not force:
        raise IncomparableError(f"These runs do not belong into one table: {' '.join(obstacles)} Force it to see it.")
    for label, members in groups.items():
        seeds = [record.config["seed"] for record in members]
        if twice := [value for value in seeds if seeds.count(value) > 1]:
            raise ValueError(f"Method '{label}' should have each seed once. Found seed {twice[0]} twice.")
    chosen = None if baseline is None else _find_label(baseline, groups)
    first = _result(finished[0])
    methods = tuple(
        _summarise(label, members, None if chosen in {None, label} else groups[str(chosen)], resamples, seed)
        for label, members in groups.items()
    )
    return Comparison(
        data=" and ".join(dict.fromkeys(_result(record)["data"] for record in finished)),
        protocol=" and ".join(dict.fromkeys(_result(record)["protocol"] for record in finished)),
        samples=first["samples"]["test"],
        majority_rate=first["majority_rate"],
        modalities=tuple(dict.fromkeys(name for r in finished for name in _result(r)["test"]["unimodal_accuracy"])),
        pairs=tuple(dict.fromkeys(name for r in finished for name in _result(r)["test"]["ratio"])),
        baseline=chosen,
        methods=methods,
        notes=tuple([f"FORCED: {reason}" for reason in obstacles] + _remarks(groups, methods)),
    )


def group_records(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by label; runs without one get the name of their method with what tells it from others of its kind."""
    named: dict[str, list[RunRecord]] = {}
    unnamed: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.label:
            named.setdefault(record.label, []).append(record)
        else:
            unnamed.setdefault(json.dumps(_all_settings(record), sort_keys=True), []).append(record)
    groups = list(unnamed.values())
    flat = [_flatten(_all_settings(members[0])) for members in groups]
    for members, mine in zip(groups, flat, strict=True):
        short = mine["method.class_path"].rpartition(".")[2]
        same = [other for other in flat if other["method.class_path"] == mine["method.class_path"]]
        telling = {
            key.removeprefix("method.init_args."): value
            for key, value in mine.items()
            if len({json.dumps(other.get(key)) for other in same}) > 1 and key != "trainer.epochs"
        }
        text = ",".join(f"{key}={value}" for key, value in telling.items())
        epochs = f"@{mine['trainer.epochs']}" if len({other.get("trainer.epochs") for other in same}) > 1 else ""
        label = f"{short}{f':{text}' if text else ''}{epochs}"
        for record in sorted(members, key=lambda record: int(record.config["seed"])):
            named.setdefault(label, []).append(dataclasses.replace(record, label=label))
    return named


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of the mean difference of two methods, paired over seeds and over test samples.

    Seeds and samples are resampled independently of each other (percentile method), so the interval holds what comes
    of the draw of the test part as well as of the training. With the usual three seeds it is too narrow rather than
    too wide: three values tell little of the spread between seeds.

    Args:
        first: Whether a method is right, shape (seeds, samples).
        second: The same of the baseline, for the same seeds and samples; with one column, the accuracies themselves.
        resamples: Resamples.
        level: Coverage.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; None where there is a single value, which cannot be resampled.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> right = np.random.default_rng(0).random((3, 400)) < 0.8
        >>> low, high = bootstrap_difference(right, right)
        >>> (low, high)
        (0.0, 0.0)
        >>> low, high = bootstrap_difference(right, right & (np.arange(400) % 10 > 0))
        >>> 0.05 < low < 0.08 < high < 0.11
        True
    """
    from scipy.stats import bootstrap

    if np.shape(first) != np.shape(second) or np.ndim(first) != 2 or not np.size(first):
        raise ValueError(
            "`first` and `second` should have one shape (seeds, samples). "
            f"Found {np.shape(first)} and {np.shape(second)}."
        )
    gains = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if gains.size == 1:
        return None
    if np.ptp(gains) == 0:
        return float(gains.flat[0]), float(gains.flat[0])
    rows, columns = gains.shape
    # Scipy resamples the numbers of the rows and of the columns; an axis of length one it would refuse.
    axes = [np.arange(length) for length in (rows, columns) if length > 1]

    def mean_of(*chosen: NDArray[Any]) -> float:
        if len(chosen) == 2:
            counts = np.bincount(chosen[0], minlength=rows)
            weights = np.bincount(chosen[1], minlength=columns)
            return float(counts @ gains @ weights / (rows * columns))
        return float(gains.reshape(-1)[chosen[0]].mean())

    found = bootstrap(
        axes, mean_of, n_resamples=resamples, vectorized=False, paired=False, confidence_level=level,
        method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_ranks(accuracies: pd.DataFrame) -> pd.Series[float]:
    """Mean rank of each method over data sets; 1 is best, equal values share their mean rank.

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
    """Mean and sample standard deviation of the values that are defined.

    Example:
        >>> estimate([1.0, None, 3.0])
        Estimate(mean=2.0, std=1.4142135623730951, runs=2)
    """
    defined = np.array([value for value in values if value is not None and not math.isnan(value)], dtype=np.float64)
    if not len(defined):
        return Estimate(math.nan, None, 0)
    return Estimate(float(defined.mean()), float(defined.std(ddof=1)) if len(defined) > 1 else None, len(defined))


def run_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """A row per run: method, seed, state, accuracies and ratios on the test part, epoch, passes, seconds, directory."""
    rows = []
    for record in records:
        row: dict[str, Any] = {"method": record.label, "seed": record.config.get("seed"), "state": record.state}
        if record.result is not None:
            result = record.result
            row |= {"accuracy": result["test"]["accuracy"]}
            row |= {f"accuracy_{name}": value for name, value in result["test"]["unimodal_accuracy"].items()}
            row |= {f"ratio_{name}": value for name, value in result["test"]["ratio"].items()}
            row |= {"validation_accuracy": result["validation"]["accuracy"], "best_epoch": result.get("best_epoch")}
            row |= {name: result[name] for name in ("epochs", "data_passes", "seconds")}
        row["error"] = (record.failure or {}).get("error", "")
        row["directory"] = str(record.directory)
        rows.append(row)
    return pd.DataFrame(rows)


def _summarise(
    label: str, members: Sequence[RunRecord], baseline: Sequence[RunRecord] | None, resamples: int, seed: int
) -> MethodSummary:
    results = [record.result for record in members if record.result is not None]

    def read(*keys: str) -> Estimate:
        return estimate(_value(result, keys) for result in results)

    names = dict.fromkeys(name for result in results for name in result["test"]["unimodal_accuracy"])
    pairs = dict.fromkeys(name for result in results for name in result["test"]["ratio"])
    minutes = estimate(result["seconds"] / 60 for result in results)
    return MethodSummary(
        label=label,
        title=title_of(label),
        seeds=tuple(int(result["seed"]) for result in results),
        failed=sum(record.state == "failed" for record in members),
        unfinished=sum(record.state in {"new", "interrupted"} for record in members),
        accuracy=read("test", "accuracy"),
        unimodal={name: read("test", "unimodal_accuracy", name) for name in names},
        ratio={name: read("test", "ratio", name) for name in pairs},
        last_epoch=read("test_last_epoch", "accuracy"),
        best_on_test=read("test_best_epoch", "accuracy"),
        difference=None if baseline is None else difference_of(members, baseline, resamples=resamples, seed=seed),
        epochs=int(results[0]["epochs"]) if results else None,
        data_passes=read("data_passes"),
        minutes=minutes,
    )


def difference_of(
    members: Sequence[RunRecord], baseline: Sequence[RunRecord], *, resamples: int = 2000, seed: int = 0
) -> Difference | None:
    """Difference of one method's runs to another's over the seeds that both have; None where there is none.

    Raises:
        ValueError: If the predictions of a run are damaged.
    """
    mine, theirs = (
        {int(record.config["seed"]): record for record in some if record.result is not None}
        for some in (members, baseline)
    )
    seeds = tuple(sorted(set(mine) & set(theirs)))
    if not seeds:
        return None
    accuracies = np.array([[_result(runs[s])["test"]["accuracy"] for s in seeds] for runs in (mine, theirs)])
    mean = float((accuracies[0] - accuracies[1]).mean())
    right = _correctness([mine[s] for s in seeds], [theirs[s] for s in seeds])
    if right is not None:
        interval = bootstrap_difference(*right, resamples=resamples, seed=seed)
        over = "seeds and samples" if len(seeds) > 1 else "samples"
    else:
        interval = bootstrap_difference(*accuracies[:, :, None], resamples=resamples, seed=seed)
        over = "seeds" if len(seeds) > 1 else "nothing"
    low, high = (None, None) if interval is None else interval
    return Difference(mean, low, high, over, seeds)


def _correctness(
    mine: Sequence[RunRecord], theirs: Sequence[RunRecord]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which samples are right, (seeds, samples) each; None where some run kept no predictions of the same samples."""
    try:
        tables = [[read_predictions(record.directory) for record in some] for some in (mine, theirs)]
    except FileNotFoundError:
        return None
    targets = tables[0][0]["targets"]
    if any(not np.array_equal(table["targets"], targets) for some in tables for table in some):
        return None
    first, second = (np.stack([table["fused"] == table["targets"] for table in some]) for some in tables)
    return first, second


def _data_differences(records: Sequence[RunRecord]) -> list[str]:
    """A sentence for everything in which the data of the runs differ."""
    flat = [_flatten(_data_settings(record)) for record in records]
    sentences = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values = list(dict.fromkeys(str(one.get(key, "none")) for one in flat))
        if len(values) > 1:
            sentences.append(f"Their {key.replace('init_args.', '')} differs ({' and '.join(values[:3])}).")
    return sentences


def _budget_differences(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """A sentence if methods had neither the epochs nor, nearly, the data passes of the others."""
    budgets = {
        label: (_result(record)["epochs"], float(_result(record)["data_passes"]))
        for label, members in groups.items()
        for record in members
        if record.result is not None
    }
    epochs = [value for value, _ in budgets.values()]
    usual = max(dict.fromkeys(epochs), key=epochs.count)
    passes = [value for number, value in budgets.values() if number == usual]
    low, high = min(passes) * (1 - _BUDGET_TOLERANCE), max(passes) * (1 + _BUDGET_TOLERANCE)
    return [
        f"'{label}' had {number} epochs and {value:g} data passes, the others {usual} epochs and "
        f"{_span(passes)} data passes."
        for label, (number, value) in budgets.items()
        if number != usual and not low <= value <= high
    ]


def _span(values: Sequence[float]) -> str:
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"


def _remarks(groups: Mapping[str, Sequence[RunRecord]], methods: Sequence[MethodSummary]) -> list[str]:
    remarks = []
    if lost := [f"{method.failed} of {method.title}" for method in methods if method.failed]:
        remarks.append(f"Failed runs, left out of the means: {', '.join(lost)}.")
    if open_ := [f"{method.unfinished} of {method.title}" for method in methods if method.unfinished]:
        remarks.append(f"Unfinished runs, left out: {', '.join(open_)}.")
    if len({method.seeds for method in methods if method.seeds}) > 1:
        remarks.append("The methods do not have the same seeds.")
    flat = {label: _flatten(_settings(members[0])) for label, members in groups.items() if members[0].config}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {json.dumps(settings.get(key)) for settings in flat.values()}
        if len(values) > 1 and not key.startswith(("method.", "trainer.epochs")):
            remarks.append(f"The methods differ in {key}: {', '.join(sorted(values))}.")
    if len({method.difference.over for method in methods if method.difference}) > 1:
        remarks.append("Not all runs kept their predictions: some intervals are over seeds alone.")
    return remarks


def _find_label(baseline: str, groups: Mapping[str, Any]) -> str:
    if baseline in groups:
        return baseline
    titles = {title_of(label): label for label in groups}
    if baseline in titles:
        return titles[baseline]
    raise ValueError(
        f"Parameter `baseline` should be one of {', '.join(groups)}. Found `baseline = {baseline!r}`."
        f"{nearest_name(baseline, groups)}"
    )


def title_of(label: str) -> str:
    """Name in the literature of a label, with its parameters; the label itself if it is no specification."""
    try:
        return parse_method(label).title
    except ValueError:
        return label


def _result(record: RunRecord) -> dict[str, Any]:
    if record.result is None:
        raise ValueError(f"{record.directory} is not finished.")
    return record.result


def _value(content: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return None if content is None else float(content)


def _data_settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs' data the same."""
    entry, result = record.config["data"], _result(record)
    given = {key: value for key, value in (entry.get("init_args") or {}).items() if key not in _PLACES}
    return {
        "data": entry["class_path"],
        "protocol": result["protocol"],
        "init_args": {key: value for key, value in given.items() if key != "protocol"},
        "samples": result["samples"],
        "majority rate": round(float(result["majority_rate"]), 6),
    }


def _settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs the same but for the seed and the data."""
    config = {key: value for key, value in record.config.items() if key not in {"data", "seed"}}
    config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in _IDLE}
    return config


def _all_settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs the same but for the seed."""
    data = record.config["data"]
    given = {key: value for key, value in (data.get("init_args") or {}).items() if key not in _PLACES}
    return {**_settings(record), "data": {"class_path": data["class_path"], "init_args": given}}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
