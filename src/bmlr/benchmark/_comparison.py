"""Comparison of methods by their finished runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bmlr._checks import check_integer, nearest_name
from bmlr.benchmark.references import references
from bmlr.benchmark.specification import parse_method
from bmlr.benchmark.statistics import Difference, Estimate, difference_of, estimate
from bmlr.runs import RunRecord, group_runs, metric_names, primary_score
from bmlr.runs.settings import data_settings, method_settings
from bmlr.tables import format_count, list_first

#: Data passes may differ by this fraction and still count as one budget: methods sample a little more or less.
_BUDGET_TOLERANCE = 0.25


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """Summary of the runs of one method.

    Attributes:
        label: Its specification.
        seeds: Seeds of the finished runs.
        failed: Number of runs that failed.
        unfinished: Number of other runs without a result.
        fused: Primary metric of the multimodal prediction.
        unimodal: Primary metric of each modality.
        metrics: All metrics of the multimodal prediction, by name.
        unimodal_metrics: All metrics of each modality, by metric and modality.
        ratio: Ratio of the primary metric of each pair of modalities.
        last_epoch: Multimodal score after the last epoch, under the paper protocol.
        best_on_test: Best multimodal test score of all epochs, under the paper protocol.
        difference: To the baseline; None for the baseline itself or without one.
        over: Differences to the references, by their names; without the reference itself.
        epochs: Epochs.
        data_passes: Samples seen in training over the size of the training split.
        minutes: Wall-clock time of a run.
    """

    label: str
    seeds: tuple[int, ...]
    failed: int
    unfinished: int
    fused: Estimate
    unimodal: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]
    unimodal_metrics: Mapping[str, Mapping[str, Estimate]]
    ratio: Mapping[str, Estimate]
    last_epoch: Estimate
    best_on_test: Estimate
    difference: Difference | None
    over: Mapping[str, Difference]
    epochs: int | None
    data_passes: Estimate
    minutes: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of methods on the same data under the same protocol.

    Attributes:
        data: Name of the data set.
        protocol: Protocol.
        samples: Samples of the test split.
        metric: Name of the primary metric.
        metrics: Names of all metrics, the primary one first.
        constant_score: Primary metric of the best constant prediction, of classes the majority rate.
        modalities: Names of the modalities.
        pairs: Names of the ratios.
        baseline: Label of the method that the differences are taken to; None without one.
        references: Labels of the best single modality (of validation) and the ensemble, where there are runs of them.
        methods: The methods, in the order given.
        notes: Caveats of the numbers.
    """

    data: str
    protocol: str
    samples: int
    metric: str
    metrics: tuple[str, ...]
    constant_score: float
    modalities: tuple[str, ...]
    pairs: tuple[str, ...]
    baseline: str | None
    references: Mapping[str, str]
    methods: tuple[MethodSummary, ...]
    notes: tuple[str, ...]


class IncomparableError(ValueError):
    """Error of runs that do not belong in one table."""


def compare_runs(
    records: Iterable[RunRecord],
    *,
    baseline: str | None = None,
    force: bool = False,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare methods by their finished runs; failed runs are counted.

    Args:
        records: Runs, grouped by their labels; those without a label are grouped by their settings.
        baseline: Label of the method the differences are to.
        force: Compare runs of different data, protocol or budget too; a note says so.
        n_resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        IncomparableError: If the runs are of different data, protocol or budget.
        ValueError: If no run is finished, a method has a seed twice, or there is no such baseline.
    """
    check_integer("n_resamples", n_resamples, 1)
    groups = group_runs(records)
    finished = [record for members in groups.values() for record in members if record.result is not None]
    if not finished:
        reasons = [record.failure["error"] for members in groups.values() for record in members if record.failure]
        raise ValueError(
            f"There is no finished run to compare.{f' The first failed with {reasons[0]}' if reasons else ''}"
        )
    obstacles = [*_data_differences(finished), *_budget_differences(groups)]
    if obstacles and not force:
        raise IncomparableError(
            f"These runs do not belong in one table: {' '.join(obstacles)} `force` compares them all the same."
        )
    for label, members in groups.items():
        seeds = [record.config["seed"] for record in members]
        if twice := [value for value in seeds if seeds.count(value) > 1]:
            raise ValueError(f"Method '{label}' should have each seed once. Found seed {twice[0]} twice.")
    baseline_label = None if baseline is None else find_label(baseline, list(groups))
    against = references(groups)

    def difference(label: str, other: str) -> Difference | None:
        return difference_of(groups[label], groups[other], n_resamples=n_resamples, seed=seed)

    def summarise(label: str, members: Sequence[RunRecord]) -> MethodSummary:
        over = {name: difference(label, other) for name, other in against.items() if other != label}
        to_baseline = None if baseline_label in {None, label} else difference(label, str(baseline_label))
        return _summarise(label, members, to_baseline, {name: value for name, value in over.items() if value})

    methods = tuple(summarise(label, members) for label, members in groups.items())
    results = [record.finished_result for record in finished]
    metric = str(results[0]["metric"])
    return Comparison(
        data=" and ".join(dict.fromkeys(result["data"] for result in results)),
        protocol=" and ".join(dict.fromkeys(result["protocol"] for result in results)),
        samples=results[0]["samples"]["test"],
        metric=metric,
        metrics=tuple(dict.fromkeys([metric, *(m for result in results for m in metric_names(result["test"]))])),
        constant_score=results[0]["constant_score"],
        modalities=tuple(
            dict.fromkeys(name for result in results for name in primary_score(result["test"], result["metric"])[1])
        ),
        pairs=tuple(dict.fromkeys(name for result in results for name in result["test"]["ratio"])),
        baseline=baseline_label,
        references=against,
        methods=methods,
        notes=tuple([f"FORCED: {reason}" for reason in obstacles] + _remarks(groups, methods)),
    )


def run_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Table with a row per run.

    Its columns are method, seed, state, metrics, ratios, epochs, data passes, seconds, error and directory.
    """
    rows = []
    for record in records:
        row: dict[str, Any] = {"method": record.label, "seed": record.config.get("seed"), "state": record.state}
        if record.result is not None:
            result = record.result
            metric = result["metric"]
            for name in dict.fromkeys([metric, *metric_names(result["test"])]):
                row |= {name: result["test"][name]}
                row |= {f"{name}_{u}": value for u, value in result["test"][f"unimodal_{name}"].items()}
            row |= {f"ratio_{name}": value for name, value in result["test"]["ratio"].items()}
            row |= {f"validation_{name}": result["validation"][name] for name in {metric: 0, result["monitor"]: 0}}
            row |= {"best_epoch": result.get("best_epoch")}
            row |= {name: result[name] for name in ("epochs", "data_passes", "seconds")}
        row["error"] = (record.failure or {}).get("error", "")
        row["directory"] = str(record.directory)
        rows.append(row)
    return pd.DataFrame(rows)


def _summarise(
    label: str, members: Sequence[RunRecord], difference: Difference | None, over: Mapping[str, Difference]
) -> MethodSummary:
    results = [record.result for record in members if record.result is not None]

    def read(*keys: str) -> Estimate:
        return estimate(_value(result, keys) for result in results)

    metric = str(results[0]["metric"]) if results else "accuracy"
    metrics = dict.fromkeys([metric, *(name for result in results for name in metric_names(result["test"]))])
    names = dict.fromkeys(name for result in results for name in primary_score(result["test"], result["metric"])[1])
    pairs = dict.fromkeys(name for result in results for name in result["test"]["ratio"])
    minutes = estimate(result["seconds"] / 60 for result in results)
    return MethodSummary(
        label=label,
        seeds=tuple(int(result["seed"]) for result in results),
        failed=sum(record.state == "failed" for record in members),
        unfinished=sum(record.state == "unfinished" for record in members),
        fused=read("test", metric),
        unimodal={name: read("test", f"unimodal_{metric}", name) for name in names},
        metrics={key: read("test", key) for key in metrics},
        unimodal_metrics={key: {u: read("test", f"unimodal_{key}", u) for u in names} for key in metrics},
        ratio={name: read("test", "ratio", name) for name in pairs},
        last_epoch=read("test_last_epoch", metric),
        best_on_test=read("test_best_epoch", metric),
        difference=difference,
        over=over,
        epochs=int(results[0]["epochs"]) if results else None,
        data_passes=read("data_passes"),
        minutes=minutes,
    )


def _data_differences(records: Sequence[RunRecord]) -> list[str]:
    """Sentences about differences in the data of the runs."""
    settings = [data_settings(record) for record in records]
    sentences = []
    for key in dict.fromkeys(key for entries in settings for key in entries):
        values = list(dict.fromkeys(str(entries.get(key, "none")) for entries in settings))
        if len(values) > 1:
            sentences.append(f"Their {key.removeprefix('init_args.')} differs ({' and '.join(values[:3])}).")
    return sentences


def _budget_differences(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Sentences about methods with another budget than most.

    Another budget is another number of epochs and clearly more or fewer data passes. A run that may stop early has the
    budget it was given, wherever it stopped; one that trains nothing has none.
    """
    budgets = {
        label: _budget(record.result, (record.config or {}).get("trainer", {}))
        for label, members in groups.items()
        for record in members
        if record.result is not None and record.result["data_passes"] > 0
    }
    if not budgets:
        return []
    epochs = [value for value, _ in budgets.values()]
    most_frequent = max(dict.fromkeys(epochs), key=epochs.count)
    passes = [value for number, value in budgets.values() if number == most_frequent]
    low, high = min(passes) * (1 - _BUDGET_TOLERANCE), max(passes) * (1 + _BUDGET_TOLERANCE)
    return [
        f"'{label}' had {format_count(number, 'epoch')} and {value:g} data passes, the others "
        f"{format_count(most_frequent, 'epoch')} and "
        f"{_span(passes)} data passes."
        for label, (number, value) in budgets.items()
        if number != most_frequent and not low <= value <= high
    ]


def _budget(result: Mapping[str, Any], trainer: Mapping[str, Any]) -> tuple[int, float]:
    """Epochs and data passes of a run."""
    done, passes = int(result["epochs"]), float(result["data_passes"])
    planned = trainer.get("epochs") if trainer.get("early_stopping") else None
    return (planned, passes * planned / done) if planned else (done, passes)


def _span(values: Sequence[float]) -> str:
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"


def _remarks(groups: Mapping[str, Sequence[RunRecord]], methods: Sequence[MethodSummary]) -> list[str]:
    remarks = []
    if failed := [f"{method.failed} of {method.label}" for method in methods if method.failed]:
        remarks.append(f"Failed runs, left out of the means: {list_first(failed)}.")
    if unfinished := [f"{method.unfinished} of {method.label}" for method in methods if method.unfinished]:
        remarks.append(f"Unfinished runs, left out: {list_first(unfinished)}.")
    if len({method.seeds for method in methods if method.seeds}) > 1:
        remarks.append("The methods do not have the same seeds.")
    flat = {label: method_settings(members[0]) for label, members in groups.items() if members[0].config}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {json.dumps(settings.get(key)) for settings in flat.values()}
        if len(values) > 1 and not key.startswith(("method.", "trainer.epochs")):
            remarks.append(f"The methods differ in {key}: {list_first(sorted(values))}.")
    if len({method.difference.over for method in methods if method.difference}) > 1:
        remarks.append("Not all runs kept their predictions: some intervals are over seeds alone.")
    return remarks


def find_label(baseline: str, labels: Sequence[str]) -> str:
    """Label of a baseline, which may be spelt otherwise.

    Raises:
        ValueError: If no label fits.
    """
    if baseline in labels:
        return baseline
    with contextlib.suppress(ValueError):
        if (text := parse_method(baseline).text) in labels:
            return text
    raise ValueError(
        f"Parameter `baseline` should be one of {', '.join(labels)}. Found `baseline = {baseline!r}`."
        f"{nearest_name(baseline, labels)}"
    )


def _value(content: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return None if content is None else float(content)
