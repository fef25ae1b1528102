import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import Joint
from bmlr.methods._agm import AGM, shapley_logits
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes, take
from zoo import make_batch, make_model


def subset_logits(model, inputs, subset):
    """f(S) with the inputs of all others zero, one whole forward each."""
    return model({u: x if u in subset else torch.zeros_like(x) for u, x in inputs.items()}).logits


def shapley_by_orders(model, inputs):
    """Shapley's first definition: the mean gain of a modality over all orders of joining."""
    names = list(inputs)
    total = dict.fromkeys(names, 0.0)
    for order in itertools.permutations(names):
        for place, u in enumerate(order):
            before = order[:place]
            gain = subset_logits(model, inputs, order[: place + 1])
            total[u] = total[u] + (gain - subset_logits(model, inputs, before) if before else gain)
    return {u: value / math.factorial(len(names)) for u, value in total.items()}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), modalities=st.sampled_from([2, 3]), fusion=st.sampled_from(bmlr.fusion.available()))
def test_fractions_are_shapley_values_and_add_up(seed, modalities, fusion):
    model = make_model(modalities, fusion, dtype=torch.float64, seed=seed).eval()
    inputs = make_batch(modalities, 4, dtype=torch.float64, seed=seed).inputs
    full = model(inputs).logits
    shares = shapley_logits(model, inputs, full)
    torch.testing.assert_close(torch.stack(list(shares.values())).sum(0), full)
    for u, expected in shapley_by_orders(model, inputs).items():
        torch.testing.assert_close(shares[u], expected, rtol=1e-9, atol=1e-12)


def test_two_modalities_as_the_paper_writes_them():
    model = make_model(2, "gated", dtype=torch.float64).eval()
    inputs = make_batch(2, 4, dtype=torch.float64).inputs
    both, audio, video = (subset_logits(model, inputs, s) for s in (("audio", "video"), ("audio",), ("video",)))
    shares = shapley_logits(model, inputs, both)
    torch.testing.assert_close(shares["audio"], (both - video + audio) / 2)
    torch.testing.assert_close(shares["video"], (both - audio + video) / 2)


def literal_coefficients(history, alpha):
    """κ of the last of a list of scores by modality, from the mean of those before."""
    now = history[-1]
    before = {u: sum(s[u] for s in history[:-1]) / max(1, len(history) - 1) for u in now}
    result = {}
    for u in now:
        others = [v for v in now if v != u]
        r = math.exp(sum(now[v] - now[u] for v in others) / len(others))
        reference = math.exp(sum(before[v] - before[u] for v in others) / len(others))
        result[u] = math.exp(alpha * min(reference - r, 10))
    return result


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), modalities=st.sampled_from([2, 3]), alpha=st.floats(0, 3))
def test_coefficients_and_scaled_gradients(seed, modalities, alpha):
    torch.manual_seed(seed)
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    method = AGM(alpha=alpha)
    method.setup(model)
    history = []
    for step in range(3):
        batch = make_batch(modalities, 5, dtype=torch.float64, seed=seed + step)
        model.zero_grad()
        losses = method.compute_losses(model, batch)
        losses.total.backward()
        actual = {name: p.grad.clone() for name, p in model.named_parameters()}

        shares = shapley_by_orders(model, batch.inputs)
        history.append({u: F.cross_entropy(m, batch.targets).item() for u, m in shares.items()})
        expected = literal_coefficients(history, alpha)
        for u, kappa in expected.items():
            assert float(losses.logs[f"coefficient_{u}"]) == pytest.approx(kappa, rel=1e-12)
        fused = torch.stack(list(shares.values())).sum(0)
        assert losses.total.item() == pytest.approx(F.cross_entropy(fused, batch.targets).item())
        upstream = torch.autograd.grad(F.cross_entropy(fused, batch.targets), fused, retain_graph=True)[0]
        model.zero_grad()
        torch.autograd.backward(list(shares.values()), [expected[u] * upstream for u in shares])
        for name, p in model.named_parameters():
            torch.testing.assert_close(actual[name], p.grad, rtol=1e-8, atol=1e-12)


def mean_scores(model, batches):
    scores = [
        [F.cross_entropy(m, batch.targets).item() for _, m in sorted(shapley_by_orders(model, batch.inputs).items())]
        for batch in batches
    ]
    return torch.tensor(scores, dtype=torch.float64).mean(0)


def test_means_count_from_the_first_epoch_and_gradients_change_from_the_first_modulated_one():
    model, batches = make_model(2, dtype=torch.float64), [make_batch(2, 5, dtype=torch.float64, seed=i) for i in (1, 2)]
    method = AGM(first_epoch=1, last_epoch=1)
    method.setup(model)
    losses = method.compute_losses(model, batches[0])
    losses.total.backward()
    method.adjust_gradients(model)
    assert not losses.logs
    plain = torch.autograd.grad(Joint()(model(batches[0].inputs), batches[0].targets).total, list(model.parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    torch.testing.assert_close(method.running_scores, mean_scores(model, batches[:1]))
    method.epoch = 1
    assert sorted(method.compute_losses(model, batches[1]).logs) == ["coefficient_audio", "coefficient_video"]
    torch.testing.assert_close(method.running_scores, mean_scores(model, batches))
    method.epoch = 2
    method.adjust_gradients(model)
    assert not method.compute_losses(model, batches[0]).logs
    assert int(method.steps) == 2


def test_the_official_epochs_are_the_default():
    method = AGM()
    acting = []
    for method.epoch in range(30):
        acting += [method.epoch] if method.is_acting else []
    assert acting == list(range(20))


class Sum(bmlr.fusion.Fusion):
    """Features that are logits, summed by no weights."""

    def fused(self, features):
        return torch.stack(list(features.values())).sum(0)


#: Parameters that decide whether AGM clips, of a model of three classes and unlike widths.
LAST = {
    "concat": ["fusion.linear.weight"],
    "sum": ["fusion.heads.audio.weight", "fusion.heads.video.weight"],
    "film": ["fusion.heads.video.weight"],
    "gated": ["fusion.heads.video.weight"],
    "bigated": ["fusion.bilinear.video.weight", "fusion.heads.video.weight"],
}


def clipped_by_hand(gradients, last, bound):
    """The official rule, number by number."""
    entries = [abs(x) for name in last for x in gradients[name].flatten().tolist()]
    norm = math.sqrt(sum(x * x for g in gradients.values() for x in g.flatten().tolist()))
    factor = min(1.0, bound / (norm + 1e-6)) if max(entries) > bound else 1.0
    return {name: factor * g for name, g in gradients.items()}


@pytest.mark.parametrize("fusion", LAST)
@pytest.mark.parametrize("unimodal", [None, "auxiliary"])
def test_clipping_by_hand(fusion, unimodal):
    model = make_model(2, fusion, dtype=torch.float64, unimodal=unimodal)
    torch.manual_seed(0)
    seen = set()
    for size in (0.01, 0.3, 1.0, 3.0):
        for name, p in model.named_parameters():
            # Large numbers anywhere else are no reason to clip, and readouts are not clipped.
            p.grad = torch.randn_like(p) * (size if name in LAST[fusion] else 9.0)
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        AGM(clip=0.9).adjust_gradients(model)
        readout = {name: g for name, g in before.items() if name.startswith("fusion.auxiliary")}
        steering = {name: g for name, g in before.items() if name not in readout}
        expected = clipped_by_hand(steering, LAST[fusion], 0.9) | readout
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], msg=name)
        seen.add(all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters()))
    assert seen == {True, False}
    AGM(clip=None).adjust_gradients(model)


def test_without_weights_in_the_fusion_every_gradient_is_looked_at():
    model = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 3) for u in "ab"}, 3, fusion=Sum({"a": 3, "b": 3}, 3))
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    AGM().adjust_gradients(model)
    assert float(model.encoders["a"].weight.grad[0, 0]) == pytest.approx(0.1)
    model.encoders["b"].bias.grad[1] = -2.0
    AGM().adjust_gradients(model)
    norm = math.sqrt(29 * 0.1**2 + 4)
    assert float(model.encoders["a"].weight.grad[0, 0]) == pytest.approx(0.1 / norm, rel=1e-5)


@pytest.mark.parametrize(("clip", "largest"), [(1.0, 3.0), (None, math.inf)])
def test_clipping_keeps_a_training_finite_that_explodes_without(clip, largest):
    def net():
        return torch.nn.Sequential(
            torch.nn.Linear(20, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(),
            torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(),
        )  # fmt: skip

    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({"a": net(), "v": net()}, 6, feature_dims={"a": 64, "v": 64})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    balancer = bmlr.Balancer(model, AGM(alpha=2.5, clip=clip), optimizer, max_epochs=1)
    centres, batches = torch.randn(6, 20), []
    for _ in range(60):
        y = torch.randint(0, 6, (16,))
        inputs = {"a": torch.randn(16, 20) + centres[y], "v": torch.randn(16, 20) + 0.3 * centres[y]}
        batches.append(bmlr.Batch(inputs, y))
    losses = [float(balancer.step(batch).total) for batch in balancer.epoch(batches)]
    assert max(losses) < largest
    assert (max(losses) > 1e9) == (clip is None)


def test_loss_scaling_and_accumulation_clip_the_gradient_of_the_step():
    def weights(accumulate, scaler):
        model = make_model(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        balancer = bmlr.Balancer(
            model, AGM(alpha=0.0, clip=1e-3), optimizer, max_epochs=1, accumulate=accumulate, scaler=scaler
        )
        batch = make_batch(2, 12)
        rows = torch.arange(12).tensor_split(accumulate)
        for planned in balancer.epoch([take(batch, part) for part in rows]):
            balancer.step(planned)
        return model.state_dict()

    start, expected = make_model(2).state_dict(), weights(1, None)
    moved = torch.stack([(expected[name] - start[name]).norm() for name in start]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)
    for accumulate, scaler in ((1, torch.amp.GradScaler("cpu")), (3, None), (3, torch.amp.GradScaler("cpu"))):
        for name, value in weights(accumulate, scaler).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-8)


def test_a_hopeless_score_is_bounded():
    model, method = make_model(2), AGM()
    method.setup(model)
    with torch.no_grad():
        model.fusion.linear.weight.mul_(1e6)
    method.compute_losses(model, make_batch(2))
    assert float(method.running_scores.max()) <= -math.log(1e-8) + 1e-5


def test_forwards_with_zeros_leave_batch_statistics_and_modes_alone():
    batch = make_batch(2, 12)
    joint, agm = make_model(2, batch_norm=True), make_model(2, batch_norm=True)
    agm.encoders["video"].eval()
    modes = [m.training for m in agm.modules()]
    method = AGM()
    method.setup(agm)
    method.compute_losses(agm, batch)
    joint.encoders["video"].eval()
    joint(batch.inputs)
    assert [m.training for m in agm.modules()] == modes
    for (name, value), other in zip(agm.named_buffers(), joint.buffers(), strict=True):
        assert torch.equal(value, other), name


class Counting(torch.nn.Module):
    num_features = 3

    def __init__(self):
        super().__init__()
        self.layer, self.rows = torch.nn.Linear(4, 3), []

    def forward(self, x):
        self.rows.append(len(x))
        return self.layer(x)


def test_encoders_run_no_more_often_with_more_modalities():
    encoders = {u: Counting() for u in "abcd"}
    model = bmlr.MultimodalClassifier(encoders, 3)
    method = AGM()
    method.setup(model)
    method.compute_losses(model, bmlr.Batch({u: torch.randn(5, 4) for u in encoders}, torch.tensor([0, 1, 2, 0, 1])))
    assert all(sorted(encoder.rows) == [1, 5, 5] for encoder in encoders.values())


def train(method, epochs=2):
    torch.manual_seed(0)
    loop = MethodLoop(make_model(2), method, make_batch(2, 24))
    loop.run(range(epochs))
    return loop.model.state_dict()


def test_without_active_epochs_it_is_joint_training_bit_for_bit():
    expected = train(Joint())
    assert all(torch.equal(v, expected[name]) for name, v in train(AGM(first_epoch=7, last_epoch=8)).items())
    assert any(not torch.equal(v, expected[name]) for name, v in train(AGM()).items())


@pytest.mark.parametrize(("epoch", "training"), [(2, True), (0, False)])
def test_a_loss_without_the_model_is_the_joint_one_outside_its_epochs_and_in_evaluation(epoch, training):
    model, method, batch = make_model(2), AGM(last_epoch=1), make_batch(2)
    method.setup(model)
    method.epoch = epoch
    method.train(training)
    assert method(model(batch.inputs), batch.targets).terms == Joint()(model(batch.inputs), batch.targets).terms


def test_alpha_zero_trains_on_the_sum_of_the_shares():
    model, method, batch = make_model(2, dtype=torch.float64), AGM(alpha=0.0), make_batch(2, dtype=torch.float64)
    method.setup(model)
    method.compute_losses(model, batch).total.backward()
    other = make_model(2, dtype=torch.float64)
    F.cross_entropy(other(batch.inputs).logits, batch.targets).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_it_says_what_it_needs():
    model, method, batch = make_model(2), AGM(), make_batch(2)
    with pytest.raises(
        RuntimeError, match=r"^AGM was not set up: call `method.setup\(model\)` once, before the optimiser is made\.$"
    ):
        method.compute_losses(model, batch)
    method.setup(model)
    with pytest.raises(RuntimeError, match=r"^AGM modulates by .*: call `compute_losses\(model, batch\)`\.$"):
        method(model(batch.inputs), batch.targets)
    batch.present = {"audio": torch.ones(8, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"^AGM compares subsets .* needs all in every sample\. Found `present`\.$"):
        method.compute_losses(model, batch)


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_resumed_run_continues_bit_for_bit(modalities):
    assert_resumes(AGM, modalities)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_the_order_of_modalities_does_not_matter(modalities):
    assert_any_order(AGM, modalities)


@pytest.mark.parametrize("modalities", [2, 3])
def test_half_precision(modalities):
    assert_half_precision(AGM, modalities)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_fusion(fusion, modalities):
    assert_every_fusion(AGM, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1.0}, "`alpha` should be a non-negative"),
        ({"alpha": math.inf}, "`alpha` should be a non-negative"),
        ({"clip": 0.0}, "`clip` should be a positive"),
        ({"first_epoch": -1}, "`first_epoch` should be an integer"),
        ({"first_epoch": 5, "last_epoch": 4}, "`last_epoch` should be an integer of at least 5"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        AGM(**parameters)
