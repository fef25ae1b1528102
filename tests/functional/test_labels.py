"""Label reshaping against a literal oracle, at its edges, and as a computation: memory, waiting, compilation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import oracle
from bmlr.functional import (
    MINIMUM_TEMPERATURE,
    confidence_ratio,
    cross_modal_labels,
    reshape_labels,
    smooth_labels,
)
from zoo import make_logits

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Half types are widened to float32 before anything is computed, so they meet float32's bound.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
# Nearer than this to a jump of the equations, rounding may decide; see oracle.is_ambiguous.
NEAR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def as_numpy(tensors):
    return {u: values.double().numpy() for u, values in tensors.items()}


def assert_agrees(logits, targets, alpha, beta, *, present=None, keep_one_hot=True):
    """Compare with the oracle; returns the share of samples that rounding may decide, which are left out."""
    got_labels, got_xi = reshape_labels(
        logits, targets, alpha=alpha, beta=beta, present=present, keep_one_hot=keep_one_hot
    )
    dtype = next(iter(logits.values())).dtype
    rows, y = as_numpy(logits), targets.numpy()
    masks = None if present is None else {u: mask.numpy() for u, mask in present.items()}
    labels, xi = oracle.reshape_batch(rows, y, alpha, beta, present=masks, keep_one_hot=keep_one_hot)
    clear = np.array(
        [
            not oracle.is_ambiguous(
                {u: values[i] for u, values in rows.items()},
                int(y[i]),
                beta,
                NEAR[dtype],
                absent=oracle.absent_of(masks, i),
                keep_one_hot=keep_one_hot,
            )
            for i in range(len(y))
        ]
    )
    # log p_y of logits as large as these has an error of a few of their last places, whoever computes it.
    largest = max(np.abs(values[np.isfinite(values)]).max(initial=0) for values in rows.values())
    tolerance = max(TOLERANCE[dtype], 4 * np.finfo(np.float64).eps * largest)
    for u in logits:
        np.testing.assert_allclose(as_numpy(got_xi)[u][clear], xi[u][clear], rtol=0, atol=tolerance)
        np.testing.assert_allclose(as_numpy(got_labels)[u][clear], labels[u][clear], rtol=0, atol=tolerance)
    assert_distributions(got_labels, got_xi)
    return 1 - clear.mean() if len(clear) else 0.0


def assert_distributions(labels, intensity=None):
    for values in labels.values():
        assert not values.requires_grad
        assert bool((values >= 0).all())
        torch.testing.assert_close(values.sum(1), torch.ones_like(values[:, 0]), rtol=0, atol=2e-6)
    for values in (intensity or {}).values():
        assert not values.requires_grad
        assert bool(((values >= 0) & (values <= 1)).all())


def one_hot(targets, num_classes, dtype=torch.float32):
    return torch.nn.functional.one_hot(targets.long(), num_classes).to(dtype)


class TestOracle:
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("modalities", [2, 3, 4, 5])
    @pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 3000.0])
    def test_random(self, modalities, scale, dtype):
        ambiguous = []
        for seed, (alpha, beta) in enumerate(itertools.product([0.1, 1.0, 8.0], [0.0, 0.1, 0.6, 1.0])):
            logits, targets = make_logits(modalities, 16, 7, scale=scale, dtype=dtype, seed=seed)
            ambiguous.append(assert_agrees(logits, targets, alpha, beta, keep_one_hot=bool(seed % 2)))
        # At large scales several modalities are certain at once, p_y = 1 but for the last bits.
        assert np.mean(ambiguous) <= (0.25 if scale > 10 else 0.02)

    @given(data=st.data())
    @settings(max_examples=150, deadline=None, database=None)
    def test_any_logits(self, data):
        """Ordinary, extreme, tied and absent; up to |logit| = 1e4, one-hot predictions included."""
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
        modalities = data.draw(st.integers(2, 5))
        num_classes = data.draw(st.integers(2, 6))
        batch_size = data.draw(st.integers(1, 4))
        value = st.one_of(
            st.floats(-1e4, 1e4, width=32),
            st.floats(-5, 5, width=32),
            st.sampled_from([0.0, -0.0, 1e4, -1e4, 88.0, -104.0, 1e-30]),
        )
        row = st.lists(value, min_size=num_classes, max_size=num_classes)
        rows = st.lists(row, min_size=batch_size, max_size=batch_size)
        logits = {f"m{i}": torch.tensor(data.draw(rows), dtype=dtype) for i in range(modalities)}
        for u in data.draw(st.sets(st.sampled_from(sorted(logits)))):  # exact ties with the first modality
            logits[u] = logits["m0"].clone()
        targets = torch.tensor(
            data.draw(st.lists(st.integers(0, num_classes - 1), min_size=batch_size, max_size=batch_size))
        )
        mask = st.lists(st.booleans(), min_size=batch_size, max_size=batch_size)
        present = data.draw(st.none() | st.dictionaries(st.sampled_from(sorted(logits)), mask.map(torch.tensor)))
        alpha = data.draw(st.floats(1e-8, 1e8) | st.sampled_from([1e-300, 1.0, 1e300]))
        beta = data.draw(st.floats(0, 1) | st.sampled_from([0.0, 1e-12, 0.5, 1.0]))
        assert_agrees(logits, targets, alpha, beta, present=present, keep_one_hot=data.draw(st.booleans()))

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize(
        "confidence", list(itertools.product(["to zero", "to one", "even"], repeat=2)), ids="/".join
    )
    def test_saturated(self, confidence, dtype):
        """p_y → 0 and → 1, in one modality and in both."""
        pattern = {"to zero": [-200.0, 150.0, 3.0], "to one": [200.0, -3.0, -90.0], "even": [0.5, 0.25, 0.5]}
        logits = {u: torch.tensor([pattern[kind]], dtype=dtype) for u, kind in zip("av", confidence, strict=True)}
        logits["v"] = logits["v"] * 0.75  # both saturated, and still unequal
        for alpha, beta in itertools.product([0.01, 1.0, 100.0], [0.0, 0.3]):
            assert_agrees(logits, torch.tensor([0]), alpha, beta)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("num_classes", [2, 1000])
    def test_one_class_in_batch_and_number_of_classes(self, num_classes, dtype):
        logits, targets = make_logits(2, 6, num_classes, dtype=dtype)
        assert_agrees(logits, torch.full_like(targets, num_classes - 1), 0.7, 0.05)
        assert_agrees({u: x[:1] for u, x in logits.items()}, targets[:1], 0.7, 0.05)  # batch of one

    def test_many_classes(self):
        """C = 100,000, where the oracle's matrix would hold 10¹⁰ numbers: Eq. 8 with 1ᵀy = 1 put in."""
        num_classes, alpha = 100_000, 2.0
        logits, targets = make_logits(2, 4, num_classes, scale=2.0)
        labels, intensity = reshape_labels(logits, targets, alpha=alpha, beta=0.0)
        rows = as_numpy(logits)
        for i, y in enumerate(targets.tolist()):
            confidence = {u: oracle.log_softmax(values[i])[y] for u, values in rows.items()}
            strong, weak = sorted(confidence, key=confidence.get, reverse=True)
            gap = confidence[strong] - confidence[weak]
            expected = (1 - np.exp(-gap)) * oracle.softmax(rows[weak][i], oracle.temperature(-gap, alpha))
            expected[y] += np.exp(-gap)
            np.testing.assert_allclose(labels[strong][i], expected.astype(float), rtol=0, atol=1e-6)
            torch.testing.assert_close(labels[weak][i], one_hot(targets, num_classes)[i], rtol=0, atol=0)
            assert intensity[weak][i] == 0
        assert_distributions(labels, intensity)

    @pytest.mark.parametrize("modalities", [2, 3, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_missing_modalities(self, modalities, dtype):
        """Every combination of present and absent, one sample each: all, some, one and none."""
        combinations = list(itertools.product([True, False], repeat=modalities))
        logits, targets = make_logits(modalities, len(combinations), 5, dtype=dtype)
        columns = torch.tensor(combinations).unbind(1)
        present = dict(zip(logits, columns, strict=True))
        assert_agrees(logits, targets, 1.3, 0.02, present=present)
        labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.0, present=present)
        for u, mask in present.items():
            assert not intensity[u][~mask].any()
            torch.testing.assert_close(labels[u][~mask], one_hot(targets, 5, dtype)[~mask], rtol=0, atol=0)

    def test_an_absent_modality_is_not_read(self):
        logits, targets = make_logits(3, 4)
        present = {"m1": torch.tensor([False, True, False, True])}
        spoiled = {**logits, "m1": logits["m1"].masked_fill(~present["m1"][:, None], math.nan)}
        expected = reshape_labels(logits, targets, alpha=1.0, beta=0.0, present=present)
        actual = reshape_labels(spoiled, targets, alpha=1.0, beta=0.0, present=present)
        for u in logits:
            torch.testing.assert_close(actual.labels[u], expected.labels[u], rtol=0, atol=0)
            torch.testing.assert_close(actual.intensity[u], expected.intensity[u], rtol=0, atol=0)

    def test_between_strongest_and_weakest_nothing_changes(self):
        logits = {u: torch.tensor([[x, 0.0, 0.0]]) for u, x in {"weak": -1.0, "strong": 3.0, "middle": 1.0}.items()}
        target = torch.tensor([0])
        labels, intensity = reshape_labels(logits, target, alpha=1.0, beta=0.0)
        pair, pair_intensity = reshape_labels({u: logits[u] for u in ("strong", "weak")}, target, alpha=1.0, beta=0.0)
        torch.testing.assert_close(labels["strong"], pair["strong"], rtol=0, atol=0)
        assert intensity["strong"] == pair_intensity["strong"] > 0
        assert intensity["middle"] == intensity["weak"] == 0

    def test_ties(self):
        high, low = [2.0, 0.0, 1.0], [0.0, 1.0, -1.0]
        target = torch.tensor([0])

        def reshape(**rows):
            return reshape_labels({u: torch.tensor([row]) for u, row in rows.items()}, target, alpha=1.0, beta=0.0)

        tied = reshape(a=high, b=low, c=high)
        assert tied.intensity["a"] == tied.intensity["c"] > 0
        torch.testing.assert_close(tied.labels["a"], tied.labels["c"], rtol=0, atol=0)
        torch.testing.assert_close(tied.labels["a"], reshape(a=high, b=low).labels["a"], rtol=0, atol=0)
        both_low = reshape(a=high, b=low, c=[0.0, -1.0, 1.0])  # equally confident in class 0, otherwise different
        torch.testing.assert_close(both_low.labels["a"][0, 1], both_low.labels["a"][0, 2])
        for u, xi in reshape(a=high, b=high, c=high).intensity.items():
            assert xi == 0, u


class TestRatio:
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_two_modalities(self, dtype):
        logits, targets = make_logits(["audio", "video"], 32, 6, dtype=dtype)
        rows = as_numpy(logits)
        ratio = confidence_ratio(logits, targets)
        for i, y in enumerate(targets.tolist()):
            p = {u: oracle.softmax(values[i])[y] for u, values in rows.items()}
            np.testing.assert_allclose(ratio["audio"][i].item(), float(p["audio"] / p["video"]), rtol=3e-6)
            np.testing.assert_allclose(ratio["video"][i].item(), float(p["video"] / p["audio"]), rtol=3e-6)
        assert ratio["audio"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not ratio["audio"].requires_grad

    def test_finite_where_probabilities_are_not(self):
        """Both probabilities underflow in float32; their ratio does not suffer."""
        logits = {"a": torch.tensor([[-500.0, 0.0]]), "v": torch.tensor([[-502.0, 0.0]])}
        torch.testing.assert_close(confidence_ratio(logits, torch.tensor([0]))["a"], torch.tensor([math.e**2]))
        logits = {"a": torch.tensor([[500.0, 0.0]]), "v": torch.tensor([[-500.0, 0.0]])}
        log_ratio = confidence_ratio(logits, torch.tensor([0]), log=True)
        torch.testing.assert_close(log_ratio["a"], torch.tensor([500.0]))
        torch.testing.assert_close(log_ratio["v"], torch.tensor([-500.0]))

    def test_ranks_and_absence(self):
        logits = {u: torch.tensor([[x, 0.0]]) for u, x in {"weak": -2.0, "middle": 0.0, "strong": 2.0}.items()}
        ratio = confidence_ratio(logits, torch.tensor([0]))
        expected = math.exp(4) * (1 + math.exp(-2)) / (1 + math.exp(2)) * math.exp(0)
        torch.testing.assert_close(ratio["strong"], torch.tensor([expected]))
        torch.testing.assert_close(ratio["weak"], torch.tensor([1 / expected]))
        assert ratio["middle"] == 1
        present = {"strong": torch.tensor([False])}
        without = confidence_ratio(logits, torch.tensor([0]), present=present)
        assert without["strong"] == 1
        pair = confidence_ratio({u: logits[u] for u in ("weak", "middle")}, torch.tensor([0]))
        assert without["middle"] == pair["middle"] > 1


class TestProperties:
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_types(self, dtype):
        logits, targets = make_logits(3, 4, dtype=dtype)
        labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.1)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert {x.dtype for x in (*labels.values(), *intensity.values())} == {expected}
        assert {x.dtype for x in cross_modal_labels(logits, targets).values()} == {expected}

    def test_mixed_types(self):
        logits, targets = make_logits(2, 4)
        mixed = {"m0": logits["m0"].double(), "m1": logits["m1"]}
        for function in (
            lambda x: reshape_labels(x, targets, alpha=1.0, beta=0.0).labels,
            lambda x: cross_modal_labels(x, targets),
        ):
            actual, expected = function(mixed), function(logits)
            assert (actual["m0"].dtype, actual["m1"].dtype) == (torch.float64, torch.float32)
            for u in logits:
                torch.testing.assert_close(actual[u].float(), expected[u], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
    def test_integer_targets(self, dtype):
        logits, targets = make_logits(3, 8)
        actual = reshape_labels(logits, targets.to(dtype), alpha=1.0, beta=0.0)
        expected = reshape_labels(logits, targets, alpha=1.0, beta=0.0)
        for u in logits:
            torch.testing.assert_close(actual.labels[u], expected.labels[u], rtol=0, atol=0)
            torch.testing.assert_close(
                cross_modal_labels(logits, targets.to(dtype))[u], cross_modal_labels(logits, targets)[u]
            )
        torch.testing.assert_close(
            smooth_labels(targets.to(dtype), 5, epsilon=0.1), smooth_labels(targets, 5, epsilon=0.1)
        )

    def test_no_gradient_and_inputs_untouched(self):
        logits, targets = make_logits(2, 4)
        logits = {u: values.requires_grad_() for u, values in logits.items()}
        before = {u: values.detach().clone() for u, values in logits.items()}
        labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.0)
        outputs = (
            *labels.values(),
            *intensity.values(),
            *cross_modal_labels(logits, targets).values(),
            *confidence_ratio(logits, targets).values(),
        )
        assert not any(x.requires_grad for x in outputs)
        for u in logits:
            torch.testing.assert_close(logits[u].detach(), before[u], rtol=0, atol=0)

    @pytest.mark.parametrize("modalities", [2, 3, 4])
    def test_order_of_names_does_not_matter(self, modalities):
        logits, targets = make_logits(modalities, 32)
        logits["m0"][:4] = logits["m1"][:4]  # some ties
        expected = reshape_labels(logits, targets, alpha=0.5, beta=0.05)
        ratio, distilled = confidence_ratio(logits, targets), cross_modal_labels(logits, targets)
        for names in itertools.permutations(logits):
            permuted = {u: logits[u] for u in names}
            actual = reshape_labels(permuted, targets, alpha=0.5, beta=0.05)
            for u in names:
                torch.testing.assert_close(actual.labels[u], expected.labels[u], rtol=0, atol=0)
                torch.testing.assert_close(actual.intensity[u], expected.intensity[u], rtol=0, atol=0)
                torch.testing.assert_close(confidence_ratio(permuted, targets)[u], ratio[u], rtol=0, atol=0)
                torch.testing.assert_close(cross_modal_labels(permuted, targets)[u], distilled[u], rtol=0, atol=1e-7)

    def test_at_most_one_of_two_is_reshaped(self):
        logits, targets = make_logits(2, 256)
        _, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.0)
        assert int(((intensity["m0"] > 0) & (intensity["m1"] > 0)).sum()) == 0
        assert int(((intensity["m0"] > 0) | (intensity["m1"] > 0)).sum()) == 256

    @pytest.mark.parametrize("modalities", [2, 3])
    def test_beta_one_reshapes_nothing(self, modalities):
        logits, targets = make_logits(modalities, 64)
        labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=1.0)
        for u in logits:
            assert not intensity[u].any()
            torch.testing.assert_close(labels[u], one_hot(targets, 5), rtol=0, atol=0)

    def test_beta_is_a_threshold(self):
        """λ = 2 exactly: reshaped for 1/β above 2, not at 2 or below."""
        logits = {
            "a": torch.tensor([[0.0, 0.0]], dtype=torch.float64),
            "v": torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64),
        }  # p_y = 1/2 and 1/4
        for beta, expected in {0.0: 0.5, 0.49: 0.5, 0.51: 0.0, 0.9: 0.0}.items():
            xi = reshape_labels(logits, torch.tensor([0]), alpha=1.0, beta=beta).intensity["a"].item()
            assert xi == pytest.approx(expected, abs=1e-12)

    def test_a_ratio_that_reaches_the_threshold_is_not_reshaped(self):
        """One class of two against one of four, whose logarithms are exact multiples: λ is 2 to the last bit."""
        logits = {"a": torch.tensor([[0.0, 0.0, -math.inf, -math.inf]]), "v": torch.zeros(1, 4)}
        for beta, expected in {0.5: 0.0, 0.499999: 0.5}.items():
            xi = reshape_labels(logits, torch.tensor([0]), alpha=1.0, beta=beta).intensity["a"].item()
            assert xi == pytest.approx(expected)

    def test_temperature(self):
        """Small α: the weaker's most probable class. Large α: uniform. Where T underflows, the bound holds it."""
        logits = {"a": torch.tensor([[4.0, 0.0, 0.0]]), "v": torch.tensor([[0.0, 1.0, 0.5]])}
        target = torch.tensor([0])
        for alpha, expected in {
            1e-300: [0.0, 1.0, 0.0],
            1e-6: [0.0, 1.0, 0.0],
            1e9: [1 / 3] * 3,
            1e300: [1 / 3] * 3,
        }.items():
            labels, intensity = reshape_labels(logits, target, alpha=alpha, beta=0.0)
            d = (labels["a"] - (1 - intensity["a"][:, None]) * one_hot(target, 3)) / intensity["a"][:, None]
            torch.testing.assert_close(d, torch.tensor([expected]), rtol=0, atol=1e-6)
        assert 0 < MINIMUM_TEMPERATURE <= 1e-5

    def test_without_one_hot(self):
        logits, targets = make_logits(2, 32)
        mixed = reshape_labels(logits, targets, alpha=1.0, beta=0.1)
        pure = reshape_labels(logits, targets, alpha=1.0, beta=0.1, keep_one_hot=False)
        for u in logits:
            xi = mixed.intensity[u][:, None]
            torch.testing.assert_close(xi * pure.labels[u] + (1 - xi) * one_hot(targets, 5), mixed.labels[u])
            torch.testing.assert_close(pure.intensity[u], mixed.intensity[u], rtol=0, atol=0)

    def test_empty_batch(self):
        logits = {"a": torch.zeros(0, 3), "v": torch.zeros(0, 3)}
        labels, intensity = reshape_labels(logits, torch.zeros(0, dtype=torch.int64), alpha=1.0, beta=0.0)
        assert labels["a"].shape == (0, 3)
        assert intensity["v"].shape == (0,)


class TestNotFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("modalities", [2, 3])
    @pytest.mark.parametrize("where", ["one entry", "row", "all modalities"])
    def test_the_label_is_one_hot(self, where, modalities, bad):
        logits, targets = make_logits(modalities, 4)
        clean = reshape_labels(logits, targets, alpha=1.0, beta=0.0)
        if where == "one entry":
            logits["m0"][1, 2] = bad
        elif where == "row":
            logits["m1"][1] = bad
        else:
            for values in logits.values():
                values[1] = bad
        for keep_one_hot in (True, False):
            labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.0, keep_one_hot=keep_one_hot)
            assert_distributions(labels, intensity)
            for u in logits:
                torch.testing.assert_close(labels[u][1], one_hot(targets, 5)[1], rtol=0, atol=0)
                assert intensity[u][1] == 0
                torch.testing.assert_close(intensity[u][[0, 2, 3]], clean.intensity[u][[0, 2, 3]], rtol=0, atol=0)
        assert_distributions(cross_modal_labels(logits, targets))

    def test_masked_class(self):
        """A class masked with −∞ in every modality gets no mass, and the others what they get without it."""
        logits, targets = make_logits(3, 8, 4)
        with_masked = {u: torch.cat([x, torch.full((8, 1), -math.inf)], 1) for u, x in logits.items()}
        for alpha in (1.0, 1e300):
            expected = reshape_labels(logits, targets, alpha=alpha, beta=0.0)
            labels, intensity = reshape_labels(with_masked, targets, alpha=alpha, beta=0.0)
            for u in logits:
                torch.testing.assert_close(intensity[u], expected.intensity[u])
                torch.testing.assert_close(labels[u][:, :4], expected.labels[u])
                assert not labels[u][:, 4].any()

    def test_masked_true_class(self):
        logits, targets = make_logits(2, 2, 4)
        logits["m0"][0, targets[0]] = -math.inf
        labels, intensity = reshape_labels(logits, targets, alpha=1.0, beta=0.0)
        torch.testing.assert_close(labels["m1"][0], one_hot(targets, 4)[0], rtol=0, atol=0)
        assert intensity["m0"][0] == intensity["m1"][0] == 0
        assert intensity["m0"][1] + intensity["m1"][1] > 0

    def test_largest_finite_logits(self):
        """Differences and sums of the largest float32 numbers overflow; labels do not."""
        huge = torch.finfo(torch.float32).max
        rows = itertools.product([huge, 0.0, -huge], repeat=3)
        values = torch.tensor(list(rows))
        targets = torch.zeros(len(values), dtype=torch.int64)
        logits = {"a": values, "b": values.flip(0), "c": values.clone(), "d": values.roll(5, 0)}
        for alpha in (1e-300, 1.0, 1e300):
            assert_distributions(*reshape_labels(logits, targets, alpha=alpha, beta=0.0))


ZEROS = {"a": torch.zeros(2, 3), "v": torch.zeros(2, 3)}
TWO = torch.tensor([0, 2])


class TestErrors:
    @pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan, math.inf])
    def test_beta(self, beta):
        with pytest.raises(ValueError, match=rf"`beta` should lie in \[0, 1\]. Found `beta = {beta}`"):
            reshape_labels(ZEROS, TWO, alpha=1.0, beta=beta)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
    def test_alpha(self, alpha):
        with pytest.raises(ValueError, match=f"`alpha` should be a positive finite number. Found `alpha = {alpha}`"):
            reshape_labels(ZEROS, TWO, alpha=alpha, beta=0.1)

    @pytest.mark.parametrize(
        ("logits", "targets", "present", "message"),
        [
            (list(ZEROS.values()), TWO, None, "`unimodal_logits` should be a dictionary .* Found list"),
            (ZEROS, [0, 1], None, "`targets` should be a tensor of class indices. Found list"),
            (ZEROS, torch.tensor([0, 3]), None, r"`targets` should lie in \[0, 2\] for 3 classes. Found .* 0 to 3"),
            (ZEROS, torch.tensor([-1, 2]), None, r"`targets` should lie in \[0, 2\].* Found values from -1"),
            (ZEROS, torch.tensor([-100, 2]), None, r"`targets` should lie in"),
            (ZEROS, torch.tensor([0]), None, r"`targets` should have shape \(2,\).* Found shape \(1,\)"),
            (ZEROS, torch.tensor([[0], [1]]), None, r"`targets` should have shape .* Found shape \(2, 1\)"),
            (ZEROS, torch.tensor([0.0, 1.0]), None, r"`targets` should be class indices .* Found dtype torch.float32"),
            (ZEROS, torch.tensor([True, False]), None, r"`targets` should be class indices .* torch.bool"),
            ({"a": torch.zeros(2, 3)}, TWO, None, r"`unimodal_logits` .* at least 2 modalities. Found 1: \['a'\]"),
            ({}, TWO, None, r"`unimodal_logits` .* at least 2 modalities. Found 0"),
            ({**ZEROS, "v": torch.zeros(2, 4)}, TWO, None, r"`unimodal_logits` .* one shape .*\(2, 4\)"),
            ({**ZEROS, "v": torch.zeros(1, 3)}, TWO, None, r"`unimodal_logits` .* one shape .*\(1, 3\)"),
            ({u: torch.zeros(2) for u in "av"}, TWO, None, r"`unimodal_logits` .* one shape .*\(2,\)"),
            ({u: torch.zeros(2, 1) for u in "av"}, TWO, None, r"`unimodal_logits` .* at least 2 classes"),
            ({**ZEROS, "v": torch.zeros(2, 3).long()}, TWO, None, r"`unimodal_logits\['v'\]` .* floating point"),
            (ZEROS, TWO, {"audio": torch.ones(2).bool()}, r"`present` .*\['a', 'v'\]. Found 'audio'"),
            (ZEROS, TWO, {"a": torch.ones(2)}, r"`present\['a'\]` should be a boolean mask .* torch.float32"),
            (ZEROS, TWO, {"a": torch.ones(3).bool()}, r"`present\['a'\]` .* shape \(2,\). .* shape \(3,\)"),
        ],
    )
    def test_tensors(self, logits, targets, present, message):
        for function in (
            lambda: reshape_labels(logits, targets, alpha=1.0, beta=0.1, present=present),
            lambda: confidence_ratio(logits, targets, present=present),
            lambda: cross_modal_labels(logits, targets, present=present),
        ):
            with pytest.raises(ValueError, match=message):
                function()

    def test_smooth_labels(self):
        with pytest.raises(ValueError, match="`epsilon` should lie in"):
            smooth_labels(TWO, 3, epsilon=1.5)
        with pytest.raises(ValueError, match=r"`targets` should lie in \[0, 1\]"):
            smooth_labels(TWO, 2, epsilon=0.1)
        with pytest.raises(ValueError, match="`num_classes` should be an integer of at least 2"):
            smooth_labels(TWO, 0, epsilon=0.1)


class TestAblations:
    def test_cross_modal_two(self):
        logits, targets = make_logits(["a", "v"], 8)
        labels = cross_modal_labels(logits, targets)
        torch.testing.assert_close(labels["a"], logits["v"].softmax(1))
        torch.testing.assert_close(labels["v"], logits["a"].softmax(1))

    def test_cross_modal_three_with_absence(self):
        logits, targets = make_logits(["a", "v", "t"], 3)
        present = {"a": torch.tensor([True, False, False]), "t": torch.tensor([True, True, False])}
        p = {u: values.softmax(1) for u, values in logits.items()}
        labels = cross_modal_labels(logits, targets, present=present)
        torch.testing.assert_close(labels["v"][0], (p["a"][0] + p["t"][0]) / 2)
        torch.testing.assert_close(labels["v"][1], p["t"][1])
        torch.testing.assert_close(labels["v"][2], one_hot(targets, 5)[2])
        torch.testing.assert_close(labels["t"][2], p["v"][2])
        assert_distributions(labels)

    @pytest.mark.parametrize("num_classes", [2, 7, 100_000])
    def test_smooth(self, num_classes):
        targets = torch.tensor([0, num_classes - 1])
        labels = smooth_labels(targets, num_classes, epsilon=0.3, dtype=torch.float64)
        torch.testing.assert_close(labels, 0.7 * one_hot(targets, num_classes, torch.float64) + 0.3 / num_classes)
        torch.testing.assert_close(
            smooth_labels(targets, 3 * num_classes, epsilon=0.0), one_hot(targets, 3 * num_classes)
        )


class Recorder(TorchDispatchMode):
    """Notes every operation and the size of its largest result."""

    def __init__(self):
        super().__init__()
        self.operations, self.launches, self.largest = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append(str(func))
        if not func.is_view and func.namespace == "aten":
            self.launches.append(str(func))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


FUNCTIONS = {
    "reshape_labels": lambda x, y, p: reshape_labels(x, y, alpha=0.5, beta=0.1, present=p),
    "vanilla": lambda x, y, p: reshape_labels(x, y, alpha=0.5, beta=0.1, present=p, keep_one_hot=False),
    "confidence_ratio": lambda x, y, p: confidence_ratio(x, y, present=p),
    "cross_modal_labels": lambda x, y, p: cross_modal_labels(x, y, present=p),
}


@pytest.mark.parametrize("with_absence", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", FUNCTIONS)
class TestComputation:
    def inputs(self, with_absence, modalities=3, batch_size=4, num_classes=5):
        logits, targets = make_logits(modalities, batch_size, num_classes)
        present = {"m1": torch.arange(batch_size) % 2 == 0} if with_absence else None
        return logits, targets, present

    def test_no_synchronisation(self, name, with_absence):
        """Tensors on the meta device hold no numbers, so any look at one on the host fails."""
        logits, targets, present = self.inputs(with_absence)
        with Recorder() as recorder:
            FUNCTIONS[name](
                {u: values.to("meta") for u, values in logits.items()},
                targets.to("meta"),
                present and {u: mask.to("meta") for u, mask in present.items()},
            )
        assert recorder.operations
        waits = ("item", "_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
        assert not [name for name in recorder.operations if any(wait in name for wait in waits)]

    def test_memory_is_linear_in_classes(self, name, with_absence):
        """No intermediate result has more than M · B · C numbers, least of all C · C."""
        modalities, batch_size, num_classes = 3, 4, 1000
        with Recorder() as recorder:
            FUNCTIONS[name](*self.inputs(with_absence, modalities, batch_size, num_classes))
        assert batch_size * num_classes <= recorder.largest <= modalities * batch_size * num_classes

    def test_number_of_operations_does_not_grow(self, name, with_absence):
        """No loop over samples or classes."""
        counts = []
        for batch_size, num_classes in ((2, 3), (64, 30)):
            with Recorder() as recorder:
                FUNCTIONS[name](*self.inputs(with_absence, 3, batch_size, num_classes))
            counts.append(len(recorder.operations))
        assert counts[0] == counts[1]

    def test_compiled(self, name, with_absence):
        """One graph without breaks, whose results are those of eager mode."""
        inputs = self.inputs(with_absence)
        torch._dynamo.reset()
        assert torch._dynamo.explain(FUNCTIONS[name])(*inputs).graph_break_count == 0
        compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(compiled, FUNCTIONS[name](*inputs), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("modalities", "most"), [(2, 34), (3, 51)])
def test_reshaping_launches_few_operations(modalities, most):
    """On a GPU an operation on small logits costs its launch alone; views launch nothing."""
    logits, targets = make_logits(modalities, 4)
    logits, targets = {u: values.to("meta") for u, values in logits.items()}, targets.to("meta")
    with Recorder() as recorder:
        reshape_labels(logits, targets, alpha=1.0, beta=0.1)
    assert len(recorder.launches) <= most, recorder.launches
