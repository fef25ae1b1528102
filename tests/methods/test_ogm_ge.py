import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr
from bmlr.methods import OGMGE, EpochContext, Joint
from bmlr.methods._modulation import encoder_gradients
from bmlr.methods._ogm_ge import _draw
from bmlr.methods._support import seeded_generator
from bmlr.tasks import Multiclass
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes
from zoo import make_batch, make_model

CLASSES = Multiclass(3)


def literal_coefficients(scores, alpha, reference):
    """Eqs. 9 and 10 one modality at a time."""
    result = []
    for u, score in enumerate(scores):
        others = [other for v, other in enumerate(scores) if v != u]
        compared = min(others) if reference == "min" else sum(others) / len(others)
        ratio = score / compared
        result.append(1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0)
    return result


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(0.01, 60), min_size=2, max_size=5),
    alpha=st.floats(0, 3),
    reference=st.sampled_from(["mean", "min"]),
)
def test_coefficients_are_those_of_the_paper(scores, alpha, reference):
    method = OGMGE(alpha=alpha, reference=reference)
    actual = method.coefficients(torch.tensor(scores, dtype=torch.float64), CLASSES).tolist()
    expected = literal_coefficients(scores, alpha, reference)
    ratios_near_one = any(abs(s / t - 1) < 1e-12 for s in scores for t in scores if s != t)
    if not ratios_near_one:  # k jumps at ρ = 1, where rounding decides
        assert actual == pytest.approx(expected, abs=1e-12)


def test_a_score_of_zero_neither_divides_nor_spreads():
    assert OGMGE(alpha=0.5).coefficients(torch.tensor([3.0, 0.0]), CLASSES).tolist() == [0.0, 1.0]
    assert OGMGE(alpha=0.5).coefficients(torch.tensor([0.0, 0.0]), CLASSES).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("reference", ["mean", "min"])
def test_nobody_is_ahead_of_an_equal(reference):
    assert OGMGE(reference=reference).coefficients(torch.tensor([3.0, 3.0]), CLASSES).tolist() == [1.0, 1.0]


def test_scores_are_logged_as_means_over_the_batch():
    model, batch = make_model(2), make_batch(2)
    output = model(batch.inputs)
    logs = OGMGE()(output, batch.targets).logs
    for name, logits in output.unimodal_logits.items():
        expected = logits.softmax(1)[torch.arange(8), batch.targets].mean()
        torch.testing.assert_close(logs[f"score_{name}"], expected.detach())
    assert set(logs) == {"score_audio", "score_video"}


def test_state_counts_steps():
    method = OGMGE()
    assert method.step == 0
    for count in (1, 2):
        step(make_model(2), method, make_batch(2))
        assert method.state_dict()["step"] == count


def step(model, method, batch):
    model.zero_grad()
    method.train()
    method(model(batch.inputs), batch.targets).total.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.adjust_gradients(model)
    return plain, {name: p.grad for name, p in model.named_parameters()}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), modalities=st.sampled_from([2, 3]), which=st.sampled_from(["weight", "all", "conv"]))
def test_gradients_are_scaled_per_encoder_and_the_fusion_is_left_alone(seed, modalities, which):
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    batch = make_batch(modalities, 6, dtype=torch.float64, seed=seed)
    plain, adjusted = step(model, OGMGE(alpha=0.7, noise=False, scope=which), batch)
    with torch.no_grad():
        logits = model(batch.inputs).unimodal_logits
    scores = {u: sum(float(x.softmax(0)[y]) for x, y in zip(logits[u], batch.targets, strict=True)) for u in logits}
    expected = dict(zip(scores, literal_coefficients(list(scores.values()), 0.7, "mean"), strict=True))
    assert min(expected.values()) < 1
    for name, gradient in plain.items():
        factor = 1.0
        if name.startswith("encoders.") and (which == "all" or (which == "weight" and gradient.ndim > 1)):
            factor = expected[name.split(".")[1]]
        torch.testing.assert_close(adjusted[name], factor * gradient, rtol=1e-12, atol=1e-15)


def test_convolutions_are_chosen_by_their_four_dimensions():
    encoders = {u: bmlr.encoders.resnet18(in_channels=1, width=2, stem="small") for u in ("audio", "image")}
    model = bmlr.MultimodalClassifier(encoders, 3)
    batch = bmlr.Batch({u: torch.randn(4, 1, 8, 8) for u in encoders}, torch.tensor([0, 1, 2, 0]))
    plain, adjusted = step(model, OGMGE(scope="conv"), batch)
    for name, gradient in plain.items():
        assert torch.equal(gradient, adjusted[name]) == (not name.startswith("encoders.") or gradient.ndim != 4)
    of_videos = torch.nn.Conv3d(1, 1, 2)
    of_videos(torch.ones(1, 1, 2, 2, 2)).sum().backward()
    assert encoder_gradients(of_videos, "conv") == []


def test_the_noise_has_the_spread_of_the_unscaled_gradient_and_hits_every_encoder():
    wide = {u: torch.nn.Linear(300, 400) for u in ("audio", "video")}
    model = bmlr.MultimodalClassifier(wide, 3)
    batch = bmlr.Batch({u: torch.randn(8, 300) for u in wide}, torch.arange(8) % 3)
    method = OGMGE(alpha=0.5)
    plain, noisy = step(model, method, batch)
    model.zero_grad()
    _, silent = step(model, OGMGE(alpha=0.5, noise=False), batch)
    for u in wide:
        name = f"encoders.{u}.weight"
        noise = noisy[name] - silent[name]
        assert float(noise.std() / plain[name].std()) == pytest.approx(1, rel=0.02)
        assert abs(float(noise.mean() / plain[name].std())) < 0.02


def test_noise_is_new_in_every_step_and_the_same_for_the_same_step():
    batch = make_batch(2)
    draws = []
    for _ in range(2):
        model, method = make_model(2), OGMGE()
        draws.append([step(model, method, batch)[1]["encoders.audio.0.weight"].clone() for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])


@pytest.mark.parametrize("gradient", [[3.0], [1.0, 2.0], [2.0, 2.0], [1.0, 5.0, -2.0]])
def test_noise_by_hand(gradient):
    method = OGMGE(seed=3)
    method.run_seed, method.step = 2, 4
    values = torch.tensor(gradient, dtype=torch.float64)
    normal = torch.randn(len(gradient), generator=seeded_generator(3, 2, 4), dtype=torch.float64)
    spread = values.std().item() if len(gradient) > 1 else 0.0
    noise = _draw(values, method.generators(method.step)(values.device))
    assert noise.dtype == torch.float64
    torch.testing.assert_close(noise, normal * (spread + 1e-8), rtol=1e-9, atol=0)


def train(method, epochs=2):
    torch.manual_seed(0)
    loop = MethodLoop(make_model(2), method, make_batch(2, 24))
    loop.run(range(epochs))
    return loop.model.state_dict()


@pytest.mark.parametrize("method", [OGMGE(alpha=0.0, noise=False), OGMGE(first_epoch=5, last_epoch=6)])
def test_neutral_settings_are_joint_training_bit_for_bit(method):
    expected = train(Joint())
    assert all(torch.equal(value, expected[name]) for name, value in train(method).items())


def test_active_settings_are_not_joint_training():
    expected = train(Joint())
    assert any(not torch.equal(value, expected[name]) for name, value in train(OGMGE(noise=False)).items())


def test_accumulated_batches_count_as_one():
    batch = make_batch(2, 12, dtype=torch.float64)
    results = []
    for splits in (1, 3):
        model, method = make_model(2, dtype=torch.float64), OGMGE(alpha=0.6)
        for rows in torch.arange(12).chunk(splits):
            losses = method(model({u: x[rows] for u, x in batch.inputs.items()}), batch.targets[rows])
            method.backward(losses, model, scale=1 / splits)
        method.adjust_gradients(model)
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_evaluation_leaves_no_scores_behind():
    model, method, batch = make_model(2), OGMGE(), make_batch(2)
    method.eval()
    method(model(batch.inputs), batch.targets).total.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.adjust_gradients(model)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())
    assert method.step == 0


def test_absent_modalities_do_not_score():
    model, method = make_model(2), OGMGE()
    present = {"video": torch.tensor([True] * 2 + [False] * 6)}
    batch = make_batch(2, 8, present=present)
    losses = method(model(batch.inputs, batch.present), batch.targets)
    assert float(losses.logs["score_video"]) <= 2 / 8


def test_it_stops_after_its_last_epoch():
    method, model, batch = OGMGE(last_epoch=1), make_model(2), make_batch(2)
    nothing = lambda: iter(())
    for epoch, acts in ((1, True), (2, False)):
        method.start_epoch(EpochContext(epoch, 3, model, 8, nothing, nothing))
        plain, adjusted = step(model, method, batch)
        assert any(not torch.equal(plain[name], adjusted[name]) for name in plain) == acts


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_resumed_run_continues_bit_for_bit(modalities):
    assert_resumes(OGMGE, modalities)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_the_order_of_modalities_does_not_matter(modalities):
    assert_any_order(OGMGE, modalities)


@pytest.mark.parametrize("modalities", [2, 3])
def test_half_precision(modalities):
    assert_half_precision(OGMGE, modalities)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_fusion(fusion, modalities):
    assert_every_fusion(OGMGE, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -0.1}, "`alpha` should be a non-negative"),
        ({"alpha": math.nan}, "`alpha` should be a non-negative"),
        ({"scope": "weights"}, "Did you mean 'weight'"),
        ({"reference": "max"}, "`reference` should be one of mean, min"),
        ({"last_epoch": -1}, "`last_epoch` should be an integer"),
        ({"seed": -1}, "`seed` should be an integer"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        OGMGE(**parameters)
