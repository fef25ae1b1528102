import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.diagnosis import IntervalEstimate
from bmlr.diagnosis._resampling import ResampledMeans
from bmlr.diagnosis.measures import (
    accuracy,
    accuracy_ratio,
    conditional_utilisation,
    confidence_gap,
    recovered_fraction,
    wilson_interval,
)
from bmlr.functional import shapley_values, subsets_of


def random_game(names, seed, shape=()):
    generator = torch.Generator().manual_seed(seed)
    values = {s: torch.randn(shape, generator=generator, dtype=torch.float64) for s in subsets_of(names)}
    return values, torch.randn(shape, generator=generator, dtype=torch.float64)


def by_permutations(values, empty, names):
    """The definition: mean gain over all orders in which the modalities can come."""
    known = {**values, frozenset(): empty}
    shares = dict.fromkeys(names, 0.0)
    orders = list(itertools.permutations(names))
    for order in orders:
        for place, u in enumerate(order):
            before = frozenset(order[:place])
            shares[u] = shares[u] + (known[before | {u}] - known[before]) / len(orders)
    return shares


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 10_000))
def test_shapley_values_are_the_mean_gain_over_all_orders(count, seed):
    names = list("dbca")[:count]
    values, empty = random_game(names, seed, (3,))
    shares = shapley_values(values, empty)
    for u, expected in by_permutations(values, empty, names).items():
        torch.testing.assert_close(shares[u], expected)
    torch.testing.assert_close(torch.stack(list(shares.values())).sum(0), values[frozenset(names)] - empty)


def test_shapley_values_of_a_modality_that_adds_nothing_are_zero_and_missing_subsets_are_named():
    values = {s: torch.tensor(0.7 if "a" in s else 0.2) for s in subsets_of(["a", "b", "c"])}
    shares = shapley_values(values, torch.tensor(0.2))
    assert [round(float(shares[u]), 6) for u in "abc"] == [0.5, 0, 0]
    del values[frozenset({"a", "c"})]
    with pytest.raises(
        ValueError, match=r"should hold every subset of \['a', 'b', 'c'\]. Missing: \[\{'[ac]', '[ac]'\}"
    ):
        shapley_values(values, torch.tensor(0.0))


def test_measures_of_samples_by_hand():
    targets = torch.tensor([0, 1, 2, 1])
    mask = torch.tensor([True, True, False, True])
    assert accuracy(torch.tensor([0, 2, 2, 1]), targets) == 0.75
    assert accuracy(torch.tensor([0, 2, 2, 1]), targets, mask) == pytest.approx(2 / 3)
    size, signed = confidence_gap(torch.tensor([0.9, 0.1]), torch.tensor([0.4, 0.3]))
    assert (size, signed) == (pytest.approx(0.35), pytest.approx(0.15))
    nobody = torch.zeros(4, dtype=torch.bool)
    assert math.isnan(accuracy(targets, targets, nobody))
    assert all(math.isnan(value) for value in confidence_gap(targets.float(), targets.float(), nobody))


def test_quotients_at_their_ends():
    assert accuracy_ratio(0.3, 0) == math.inf
    assert math.isnan(accuracy_ratio(0, 0))
    assert conditional_utilisation(0.5, 0.6) == pytest.approx(-0.2)
    assert math.isnan(conditional_utilisation(0, 0))
    assert recovered_fraction(0.7, 0.7, 0.1) == 1
    assert recovered_fraction(0.1, 0.7, 0.1) == 0
    assert math.isnan(recovered_fraction(0.5, 0.1, 0.1))


def test_the_bootstrap_interval_has_the_width_of_theory_and_is_paired():
    rng = np.random.default_rng(0)
    hits = (rng.random(2000) < 0.7).astype(float)
    means = ResampledMeans({"a": hits, "b": hits}, n_resamples=2000)
    estimate = means.estimate("a")
    assert estimate.value == hits.mean()
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 2000), rel=0.1)
    assert means.estimate(lambda means: means["a"] - means["b"]) == IntervalEstimate(0, 0, 0)
    other = ResampledMeans({"a": hits}, n_resamples=2000, seed=1)
    means.add(other, "other:")
    apart = means.estimate(lambda means: means["a"] - means["other:a"])
    assert apart.value == 0
    assert apart.low < -0.02 < 0.02 < apart.high


def test_intervals_of_few_or_all_right_answers_are_no_points():
    # Wilson's interval of 6 of 6, and Newcombe's of the difference of two such proportions.
    means = ResampledMeans({"a": np.ones(6), "b": np.ones(6), "x": np.full(6, 0.5)}, n_resamples=100)
    assert means.estimate("a") == pytest.approx((1.0, 0.6097, 1.0), abs=1e-4)
    assert means.estimate("a").percent == "100.0 % [61.0, 100.0]"
    assert means.difference("a", "b") == pytest.approx((0.0, -0.3903, 0.3903), abs=1e-4)
    assert means.estimate("x") == (0.5, 0.5, 0.5)  # no proportion
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert all(math.isnan(end) for end in wilson_interval(0.5, 0))
    # Away from the ends it is the interval of the bootstrap.
    first = np.repeat([1.0, 1, 0, 0], (36, 12, 2, 0))
    second = np.repeat([1.0, 0, 1, 0], (36, 12, 2, 0))
    paired = ResampledMeans({"a": first, "b": second}, n_resamples=4000)
    bootstrap = paired.estimate(lambda means: means["a"] - means["b"])
    assert paired.difference("a", "b") == pytest.approx(bootstrap, abs=0.03)


def test_bootstrap_leaves_out_samples_that_do_not_count():
    column = np.array([1.0, np.nan, 0.0, np.nan])
    means = ResampledMeans({"a": column, "none": np.full(4, np.nan)}, n_resamples=200)
    assert means.means["a"] == 0.5
    never = means.estimate("none")
    assert all(math.isnan(value) for value in never)
    assert str(never) == "–"
    assert never.as_dict() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": np.zeros(0)}, {}, "one length above zero"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, {}, "one length above zero"),
        ({"a": np.zeros(2)}, {"level": 1.0}, "`level` should lie between 0 and 1"),
        ({"a": np.zeros(2)}, {"n_resamples": 0}, "`n_resamples` should be an integer of at least 1"),
    ],
)
def test_bad_arguments_of_the_bootstrap(columns, options, message):
    with pytest.raises(ValueError, match=message):
        ResampledMeans(columns, **options)
