import dataclasses
import math
import tracemalloc
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.benchmark import IncomparableError, compare_runs, run_frame
from bmlr.benchmark import statistics as statistics_module
from bmlr.benchmark.statistics import bootstrap_difference, estimate, mean_ranks
from bmlr.runs import group_runs
from inline import failed, finished


def hits(rate, seed, samples=200):
    return np.random.default_rng(seed).random(samples) < rate


def test_means_and_deviations_are_numpys(tmp_path):
    rates = {seed: hits(0.6, seed) for seed in range(4)}
    records = [finished(tmp_path, "Joint", seed, some) for seed, some in rates.items()]
    summary = compare_runs(records).methods[0]
    values = [some.mean() for some in rates.values()]
    assert summary.fused.mean == pytest.approx(np.mean(values))
    assert summary.fused.std == pytest.approx(np.std(values, ddof=1))
    assert summary.unimodal["image"].mean == pytest.approx(np.mean(values) / 2)
    assert summary.ratio["audio/image"].mean == 2.0
    assert (summary.seeds, summary.data_passes.mean, summary.minutes.mean) == ((0, 1, 2, 3), 3.0, 1.0)


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(-5, 5)), max_size=8))
@settings(deadline=None, max_examples=50)
def test_estimates_count_only_what_is_defined(values):
    one = estimate(values)
    defined = [value for value in values if value is not None and not math.isnan(value)]
    assert one.runs == len(defined)
    assert math.isnan(one.mean) == (not defined)
    assert (one.std is None) == (len(defined) < 2)


def test_a_ratio_by_zero_is_left_out(tmp_path):
    records = [finished(tmp_path, "Joint", 0, [0, 0]), finished(tmp_path, "Joint", 1, [1, 1])]
    assert compare_runs(records).methods[0].ratio["audio/image"].runs == 1


def test_the_interval_holds_the_difference_and_narrows_with_samples():
    widths = []
    for samples in (100, 10_000):
        first, second = (
            np.stack([hits(rate, 10 * seed + int(100 * rate), samples) for seed in range(3)]) for rate in (0.8, 0.7)
        )
        low, high = bootstrap_difference(first, second, n_resamples=500)
        assert low < first.mean() - second.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_pairing_over_samples_narrows_the_interval():
    # Both are right on the same samples but for a few: only a paired interval can know that.
    second = np.stack([hits(0.5, seed, 2000) for seed in range(3)])
    first = second | (np.arange(2000) % 50 == 0)
    low, high = bootstrap_difference(first, second, n_resamples=500)
    unpaired = bootstrap_difference(first, np.roll(second, 997, axis=1), n_resamples=500)
    assert 0 < low < first.mean() - second.mean() < high
    assert high - low < (unpaired[1] - unpaired[0]) / 3


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Many seeds, so that the bootstrap over seeds is not the bottleneck: the truth is a difference of 0.1.
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        shift = 0.1 + rng.normal(0, 0.02, (12, 1))
        first = rng.random((12, 150)) < 0.6 + shift
        second = rng.random((12, 150)) < 0.6
        low, high = bootstrap_difference(first, second, n_resamples=300, seed=trial)
        covered += low <= 0.1 <= high
    assert 50 <= covered <= 60


def test_intervals_of_few_values():
    assert bootstrap_difference([[0.7]], [[0.6]]) is None
    low, high = bootstrap_difference([[0.7], [0.8], [0.9]], [[0.6], [0.6], [0.6]], n_resamples=300)
    assert 0.1 - 1e-12 <= low < 0.2 < high <= 0.3 + 1e-12
    assert bootstrap_difference([[0.5, 0.5]], [[0.25, 0.25]]) == (0.25, 0.25)
    assert bootstrap_difference([[1, 0, 1]], [[0, 0, 1]], seed=1) == bootstrap_difference(
        [[1, 0, 1]], [[0, 0, 1]], seed=1
    )
    with pytest.raises(ValueError, match=r"one shape \(seeds, samples\). Found \(1, 2\) and \(1, 3\)"):
        bootstrap_difference([[1, 0]], [[1, 0, 1]])
    with pytest.raises(ValueError, match="`n_resamples` should be"):
        bootstrap_difference([[1, 0]], [[1, 1]], n_resamples=1)


@given(
    st.integers(1, 4), st.integers(1, 30), st.booleans(), st.integers(2, 60), st.integers(1, 200), st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_the_interval_is_that_of_a_loop_over_resamples(seeds, samples, binary, n_resamples, block, seed):
    values = np.random.default_rng(seed).random((2, seeds, samples))
    first, second = values > 0.4 if binary else values
    gains = first.astype(float) - second
    with mock.patch.object(statistics_module, "_BLOCK", block):
        found = bootstrap_difference(first, second, n_resamples=n_resamples, level=0.9, seed=seed)
    if gains.size == 1:
        assert found is None
    elif np.ptp(gains):  # else there is nothing to resample
        means = []
        rng = np.random.default_rng(seed)
        batch = max(1, block // samples)
        for start in range(0, n_resamples, batch):
            lengths = [length for length in gains.shape if length > 1]
            drawn = [rng.integers(length, size=(min(batch, n_resamples - start), length)) for length in lengths]
            means += [gains.squeeze()[np.ix_(*rows)].mean() for rows in zip(*drawn, strict=True)]
        assert found == pytest.approx(tuple(np.percentile(means, [5, 95])), rel=1e-12, abs=1e-12)


def test_the_memory_of_an_interval_does_not_grow_with_its_resamples():
    first, second = np.random.default_rng(0).random((2, 1, 100_000)) < 0.5
    tracemalloc.start()
    try:
        bootstrap_difference(first, second, n_resamples=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # the indices of all resamples alone are 80 MB


def test_differences_are_paired_by_seed(tmp_path):
    records = [finished(tmp_path, "Joint", seed, hits(0.5, seed)) for seed in (0, 1, 2)]
    records += [finished(tmp_path, "BMLR", seed, hits(0.5, seed) | hits(0.2, 9)) for seed in (1, 2, 3)]
    base, other = compare_runs(records, baseline="Joint", n_resamples=300).methods
    assert base.difference is None
    assert other.difference.seeds == (1, 2)
    expected = np.mean([(hits(0.5, s) | hits(0.2, 9)).mean() - hits(0.5, s).mean() for s in (1, 2)])
    assert other.difference.mean == pytest.approx(expected)
    assert other.difference.over == "seeds and samples"
    assert 0 < other.difference.low < expected < other.difference.high
    assert compare_runs(records, baseline="joint").baseline == "Joint"  # in any spelling


def test_without_predictions_the_interval_is_over_seeds(tmp_path):
    records = [finished(tmp_path, label, seed, hits(rate, seed)) for label, rate in (("Joint", 0.5), ("BMLR", 0.7))
               for seed in (0, 1)]  # fmt: skip
    (records[3].directory / "predictions.safetensors").unlink()
    assert compare_runs(records, baseline="Joint").methods[1].difference.over == "seeds"
    one = compare_runs([records[0], records[2]], baseline="Joint").methods[1].difference
    assert one.over == "samples"
    (records[2].directory / "predictions.safetensors").unlink()
    one = compare_runs([records[0], records[2]], baseline="Joint").methods[1].difference
    assert (one.over, one.low) == ("nothing", None)


def test_failed_and_unfinished_runs_are_counted_and_said(tmp_path):
    good = finished(tmp_path, "Joint", 0, [1, 0])
    records = [good, failed(tmp_path, "Joint", 1), failed(tmp_path, "BMLR", 0)]
    records.append(dataclasses.replace(failed(tmp_path, "BMLR", 1), failure=None))
    comparison = compare_runs(records, baseline="Joint")
    joint, bmlr = comparison.methods
    assert (joint.failed, joint.seeds) == (1, (0,))
    assert (bmlr.failed, bmlr.unfinished, bmlr.seeds, bmlr.difference) == (1, 1, (), None)
    assert "Failed runs, left out of the means: 1 of Joint, 1 of BMLR." in comparison.notes
    frame = run_frame(records)
    assert frame["state"].tolist() == ["finished", "failed", "failed", "unfinished"]
    assert frame["error"][1] == "ValueError: broken"
    with pytest.raises(ValueError, match="no finished run to compare. The first failed with ValueError: broken"):
        compare_runs(records[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "paper"}, r"Their protocol differs \(clean and paper\)"),
        ({"constant_score": 0.5}, "Their score of a constant prediction differs"),
        ({"samples": {"train": 9, "val": 9, "test": 5}}, "Their samples.test differs"),
        ({"epochs": 30, "data_passes": 30.0}, "'BMLR' had 30 epochs and 30 data passes, the others 3 epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_unless_forced(tmp_path, change, message):
    records = [finished(tmp_path, "Joint", seed, [1, 0]) for seed in (0, 1)]
    records.append(finished(tmp_path, "BMLR", 0, [1, 1], **change))
    with pytest.raises(IncomparableError, match=message):
        compare_runs(records)
    forced = compare_runs(records, force=True)
    assert any(note.startswith("FORCED: ") for note in forced.notes)


def test_other_data_parameters_are_refused_but_not_other_folders(tmp_path):
    first, second = finished(tmp_path, "Joint", 0, [1, 0]), finished(tmp_path, "BMLR", 0, [1, 1])
    second.config["data"]["init_args"]["samples"] = 50
    with pytest.raises(IncomparableError, match=r"Their samples differs \(40 and 50\)"):
        compare_runs([first, second])
    second.config["data"]["init_args"] = {"samples": 40, "protocol": "clean", "root": "/elsewhere"}
    assert compare_runs([first, second]).data == "toy"


def test_fewer_epochs_of_several_passes_are_one_budget(tmp_path):
    records = [finished(tmp_path, "Joint", 0, [1, 0], epochs=20, data_passes=20.0)]
    records.append(finished(tmp_path, "ReconBoost", 0, [1, 0], epochs=10, data_passes=18.0))
    assert [method.epochs for method in compare_runs(records).methods] == [20, 10]


def test_runs_that_stopped_early_have_the_budget_they_were_given(tmp_path):
    records = [
        finished(tmp_path, name, 0, [1, 0], epochs=epochs, data_passes=float(epochs))
        for name, epochs in (("Joint", 20), ("BMLR", 9))
    ]
    with pytest.raises(IncomparableError, match="had .* epochs"):
        compare_runs(records)
    for record in records:
        record.config["trainer"] |= {"epochs": 30, "early_stopping": 3}
    assert [method.epochs for method in compare_runs(records).methods] == [20, 9]
    records[1].config["trainer"] |= {"epochs": 90}
    with pytest.raises(IncomparableError, match="had 90 epochs and 90 data passes, the others 30"):
        compare_runs(records)


def test_bad_arguments_are_named(tmp_path):
    records = [finished(tmp_path, "Joint", 0, [1, 0])]
    with pytest.raises(
        ValueError, match="`baseline` should be one of Joint. Found `baseline = 'Jiont'`. Did you mean 'Joint'"
    ):
        compare_runs(records, baseline="Jiont")
    with pytest.raises(ValueError, match="Method 'Joint' should have each seed once. Found seed 0 twice"):
        compare_runs([*records, *records])


def test_runs_without_labels_are_told_apart_by_what_differs(tmp_path):
    records = [dataclasses.replace(finished(tmp_path, "Joint", seed, [1]), label="") for seed in (1, 0)]
    for alpha in (1.0, 2.0):
        record = dataclasses.replace(finished(tmp_path, f"BMLR:{alpha}", 0, [1]), label="")
        record.config["method"]["init_args"] = {"alpha": alpha, "beta": 0.1}
        records.append(record)
    groups = group_runs(records)
    assert list(groups) == ["Joint", "BMLR:alpha=1.0", "BMLR:alpha=2.0"]
    assert [record.config["seed"] for record in groups["Joint"]] == [0, 1]


def test_ranks_share_their_places():
    table = pd.DataFrame({"a": [0.5, 0.7, 0.7], "b": [0.9, 0.1, 0.2], "c": [0.1, np.nan, 0.2]}, index=["x", "y", "z"])
    assert mean_ranks(table).to_dict() == {"x": 2.0, "y": 2.25, "z": 1.75}
    with pytest.raises(ValueError, match="at least one data set with all methods"):
        mean_ranks(table[["c"]])
