import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import Joint
from bmlr.methods._opm import OPM
from bmlr.methods._support import seeded_generator
from bmlr.tasks import Multiclass
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes
from zoo import make_batch, make_model

CLASSES = Multiclass(3)


def active(**parameters):
    return OPM(**{"warmup": 0, "probability": 1.0, **parameters})


def literal_rates(scores, rate, strength):
    result = []
    for u, score in enumerate(scores):
        others = [other for v, other in enumerate(scores) if v != u]
        lead = math.tanh(max(0.0, score / (sum(others) / len(others)) - 1))
        result.append(min(1.0, max(0.0, rate * (1 + strength * lead))) if lead > 0 else 0.0)
    return result


@settings(deadline=None)
@given(scores=st.lists(st.floats(0.01, 60), min_size=2, max_size=5), rate=st.floats(0, 1), strength=st.floats(0, 5))
def test_rates_are_those_of_the_paper(scores, rate, strength):
    mean = sum(scores) / len(scores)
    if any(abs(score / mean - 1) < 1e-9 for score in scores):  # the rate jumps where the lead is zero
        return
    method = OPM(rate=rate, strength=strength)
    actual = method.drop_rates(torch.tensor(scores, dtype=torch.float64), CLASSES).tolist()
    assert actual == pytest.approx(literal_rates(scores, rate, strength), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), modalities=st.sampled_from([2, 3]), fusion=st.sampled_from(["concat", "film", "sum"]))
def test_the_loss_is_that_of_the_samples_left(seed, modalities, fusion):
    model = make_model(modalities, fusion, dtype=torch.float64, seed=seed)
    batch, method = make_batch(modalities, 12, dtype=torch.float64, seed=seed), active(seed=seed, rate=0.8)
    output = model(batch.inputs)
    losses = method(output, batch.targets)

    names = sorted(model.modalities)
    rates = [float(losses.logs[f"drop_{u}"]) for u in names]
    generator = seeded_generator(seed, 0, 0)
    torch.rand((), generator=generator)
    draws = torch.rand(12, len(names), generator=generator)
    widths = [output.features[u].shape[1] for u in names]
    theta = sum(w * q for w, q in zip(widths, rates, strict=True)) / sum(widths)
    rows, features = [], {u: [] for u in names}
    for i in range(12):
        kept = [float(draws[i, k]) >= rates[k] for k in range(len(names))]
        if any(kept):
            rows.append(i)
            for k, u in enumerate(names):
                features[u].append(output.features[u][i] * kept[k] / (1 - theta + 1e-5))
    expected = F.cross_entropy(
        model.fusion.fused({u: torch.stack(features[u]) for u in model.modalities}), batch.targets[rows]
    )
    torch.testing.assert_close(losses.terms["fused"], expected, rtol=1e-6, atol=1e-9)


def test_nobody_is_ahead_of_an_equal():
    assert OPM().drop_rates(torch.tensor([3.0, 3.0]), CLASSES).tolist() == [0.0, 0.0]


def test_it_starts_after_its_warm_up_and_counts_its_steps():
    model, batch, method = make_model(2), make_batch(2), active(warmup=2)
    output, steps = model(batch.inputs), []
    for method.epoch in range(4):
        assert bool(method(output, batch.targets).logs) == (method.epoch >= 2)
        steps.append(int(method.state_dict()["step"]))
    assert steps == [0, 0, 1, 2]


def test_only_the_modality_ahead_is_dropped_and_at_its_rate():
    torch.manual_seed(0)
    model = make_model(2)
    batch = make_batch(2, 4000)
    output = model(batch.inputs)
    method = active(rate=0.5, strength=0.0)
    losses = method(output, batch.targets)
    rates = {u: float(losses.logs[f"drop_{u}"]) for u in model.modalities}
    assert sorted(rates.values()) == [0.0, 0.5]
    behind = min(rates, key=rates.get)
    losses.total.backward()
    assert all(p.grad is not None for p in model.encoders[behind].parameters())


def test_a_batch_that_lost_everything_has_no_gradient():
    model, method = make_model(2), active(rate=1.0)
    batch = make_batch(2, 6, present={"audio": torch.zeros(6, dtype=torch.bool)})
    # The absent modality scores zero, so the other is ahead without bound and is dropped in every sample.
    losses = method(model(batch.inputs, batch.present), batch.targets)
    assert losses.total.item() == 0
    losses.total.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def train(method, epochs=3):
    torch.manual_seed(0)
    loop = MethodLoop(make_model(2), method, make_batch(2, 24))
    loop.run(range(epochs))
    return loop.model.state_dict()


@pytest.mark.parametrize("method", [OPM(probability=0.0, warmup=0), OPM(warmup=9)])
def test_neutral_settings_are_joint_training_bit_for_bit(method):
    expected = train(Joint())
    assert all(torch.equal(value, expected[name]) for name, value in train(method).items())


def test_active_settings_are_not_joint_training():
    expected = train(Joint())
    assert any(not torch.equal(value, expected[name]) for name, value in train(active()).items())


def test_batches_are_treated_with_the_given_probability():
    model, batch, method = make_model(2), make_batch(2), active(probability=0.3)
    output = model(batch.inputs)
    treated = sum(bool(method(output, batch.targets).logs) for _ in range(600))
    assert treated / 600 == pytest.approx(0.3, abs=0.06)


def test_evaluation_drops_nothing_and_draws_nothing():
    model, batch, method = make_model(2), make_batch(2), active()
    method.eval()
    output = model(batch.inputs)
    assert torch.equal(method(output, batch.targets).total, F.cross_entropy(output.logits, batch.targets))
    assert method.step == 0


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_resumed_run_continues_bit_for_bit(modalities):
    assert_resumes(active, modalities)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_the_order_of_modalities_does_not_matter(modalities):
    assert_any_order(active, modalities)


@pytest.mark.parametrize("modalities", [2, 3])
def test_half_precision(modalities):
    assert_half_precision(lambda: OPM(warmup=9), modalities)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_fusion(fusion, modalities):
    assert_every_fusion(active, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rate": 1.1}, r"`rate` should lie in \[0, 1\]"),
        ({"strength": -1.0}, "`strength` should be a non-negative"),
        ({"probability": math.nan}, "`probability` should lie in"),
        ({"warmup": -1}, "`warmup` should be an integer of at least 0"),
        ({"seed": 1.5}, "`seed` should be an integer"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        OPM(**parameters)
