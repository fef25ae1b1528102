import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

import bmlr
from bmlr.functional import pareto_weight
from bmlr.methods import UniformBaseline
from bmlr.methods._mmpareto import MMPareto, _growth
from bmlr.methods._support import reduced_gradients
from method_loop import assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes
from zoo import make_batch, make_model


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 6), tilt=st.floats(-3, 3))
def test_the_weight_is_that_of_the_shortest_combination(seed, width, tilt):
    generator = torch.Generator().manual_seed(seed)
    g_m = torch.randn(width, generator=generator, dtype=torch.float64)
    g_u = torch.randn(width, generator=generator, dtype=torch.float64) + tilt * g_m
    product = float(g_m @ g_u)
    assume(abs(product) > 1e-9)
    weight = float(pareto_weight([g_m[:1], g_m[1:]], [g_u[:1], g_u[1:]]))
    if product > 0:
        assert weight == 0.5
        return
    lengths = [float((w * g_m + (1 - w) * g_u).norm()) for w in torch.linspace(0, 1, 2001).tolist()]
    assert float((weight * g_m + (1 - weight) * g_u).norm()) <= min(lengths) + 1e-9


def test_gradients_that_vanish_or_agree_weigh_the_same():
    zero, some = [torch.zeros(3)], [torch.ones(3)]
    assert float(pareto_weight(zero, zero)) == 0.5
    assert float(pareto_weight(some, some)) == 0.5
    assert float(pareto_weight(some, zero)) == float(pareto_weight(zero, some)) == 0.5
    assert float(pareto_weight(some, [-torch.ones(3)])) == 0.5  # opposite and of one length: they cancel


@pytest.mark.parametrize(
    ("g_m", "g_u", "weight"),
    [
        ([1.0, 0.0], [0.0, 2.0], 0.8),  # at a right angle
        ([0.5, 0.0], [0.5, 0.5], 0.5),
        ([1.0, 0.0], [-3.0, 0.0], 0.75),
        ([4.0, 0.0], [-1.0, 0.0], 0.2),
    ],
)
def test_weights_by_hand(g_m, g_u, weight):
    assert float(pareto_weight([torch.tensor(g_m)], [torch.tensor(g_u)])) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("plain", "combined", "factor"), [(3.0, 2.0, 1.5), (2.0, 3.0, 1.0), (2.0, 0.0, 1.0), (1.0, 0.5, 2.0)]
)
def test_what_is_shorter_grows_to_the_plain_length(plain, combined, factor):
    assert float(_growth(torch.tensor(plain), torch.tensor(combined))) == factor


def test_gradients_are_averaged_over_processes(monkeypatch):
    layers = {"used": torch.nn.Linear(3, 2), "unused": torch.nn.Linear(3, 2)}
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    loss = layers["used"](torch.randn(4, 3)).square().sum()
    alone = reduced_gradients(loss, parameters, retain_graph=True)
    assert set(alone) == set(layers["used"].parameters())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(10.0))  # the other's are all ten
    both = reduced_gradients(loss, parameters, retain_graph=False)
    assert set(both) == set(alone)
    for parameter, gradient in alone.items():
        torch.testing.assert_close(both[parameter], (gradient + 10) / 2)


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
def test_a_classifier_that_starts_at_zero_leaves_encoders_the_gradient_of_their_heads(rescale):
    model, method, batch = make_model(2, dtype=torch.float64), MMPareto(rescale=rescale), make_batch(2)
    method.setup(model)
    torch.nn.init.zeros_(model.fusion.linear.weight)
    torch.nn.init.zeros_(method.heads["video"].weight)  # neither loss reaches this encoder
    batch = batch.to("cpu", dtype=torch.float64)
    losses = method.compute_losses(model, batch)
    parameters = list(model.encoders["audio"].parameters())
    expected = torch.autograd.grad(losses.terms["audio"], parameters, retain_graph=True)
    method.backward(losses, model)
    for p, g in zip(parameters, expected, strict=True):
        assert bool(g.any())
        torch.testing.assert_close(p.grad, 1.5 * g)
    assert not any(bool(p.grad.any()) for p in model.encoders["video"].parameters())


def literal_gradients(model, method, batch):
    """Four separate backward passes and the paper's combination, parameter by parameter in plain Python."""
    output = model(batch.inputs)
    losses = {"fused": F.cross_entropy(output.logits, batch.targets)}
    losses |= {u: F.cross_entropy(method.heads[u](z), batch.targets) for u, z in output.features.items()}
    result = {}
    everything = {**dict(model.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    grads = {
        key: dict(
            zip(
                everything,
                torch.autograd.grad(loss, list(everything.values()), retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for key, loss in losses.items()
    }
    total = {n: sum(g[n] for g in grads.values() if g[n] is not None) for n in everything}
    for u in model.modalities:
        names = [n for n in everything if n.startswith(f"encoders.{u}.")]
        g_m = torch.cat([grads["fused"][n].flatten() for n in names])
        g_u = torch.cat([grads[u][n].flatten() for n in names])
        if F.cosine_similarity(g_m, g_u, dim=0) > 0:
            w = 0.5
        else:
            w = float(((g_u - g_m) @ g_u / (g_m - g_u).norm() ** 2).clamp(0, 1))
        h = {n: 2 * w * grads["fused"][n] + 2 * (1 - w) * grads[u][n] for n in names}
        whole = max(1.0, float((g_m + g_u).norm() / torch.cat([v.flatten() for v in h.values()]).norm()))
        for n in names:
            n_tensor = max(1.0, float(total[n].norm() / h[n].norm()))
            result[n] = h[n] * 1.5 * (n_tensor if method.rescale == "tensor" else whole)
    return {**total, **result}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    modalities=st.sampled_from([2, 3]),
    rescale=st.sampled_from(["tensor", "encoder"]),
    conflict=st.booleans(),
)
def test_gradients_are_those_of_the_paper(seed, modalities, rescale, conflict):
    torch.manual_seed(seed)
    model, method = make_model(modalities, dtype=torch.float64, seed=seed), MMPareto(rescale=rescale)
    method.setup(model)
    if conflict:  # heads that want the opposite of the multimodal loss
        with torch.no_grad():
            for u, columns in zip(
                model.modalities,
                model.fusion.linear.weight.split(list(model.fusion.feature_dims.values()), 1),
                strict=True,
            ):
                method.heads[u].weight.copy_(-columns)
    batch = make_batch(modalities, 6, dtype=torch.float64, seed=seed)
    expected = literal_gradients(model, method, batch)
    method.backward(method(model(batch.inputs), batch.targets), model)
    for name, p in [*model.named_parameters(), *((f"method.{n}", p) for n, p in method.named_parameters())]:
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-8, atol=1e-12)


def test_conflicts_are_met_in_these_tests():
    model, method, batch = make_model(2), MMPareto(), make_batch(2)
    method.setup(model)
    with torch.no_grad():
        method.heads["audio"].weight.copy_(-model.fusion.linear.weight[:, :7])
    output = model(batch.inputs)
    parameters = list(model.encoders["audio"].parameters())
    losses = method(output, batch.targets).terms
    g_m = torch.autograd.grad(losses["fused"], parameters, retain_graph=True)
    g_u = torch.autograd.grad(losses["audio"], parameters, retain_graph=True)
    assert sum(float((m * u).sum()) for m, u in zip(g_m, g_u, strict=True)) < 0
    assert float(pareto_weight(g_m, g_u)) != 0.5


def test_two_backward_passes():
    class Counting(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            Counting.calls += 1
            return gradient

    class Encoder(torch.nn.Module):
        num_features = 7

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 7)

        def forward(self, x):
            return Counting.apply(self.layer(x))

    model = bmlr.MultimodalClassifier({"audio": Encoder(), "video": torch.nn.Linear(6, 5)}, 3)
    method, batch = MMPareto(), make_batch(2)
    method.setup(model)
    method.backward(method(model(batch.inputs), batch.targets), model)
    assert Counting.calls == 2


def test_where_gradients_agree_it_is_the_uniform_baseline_of_weight_one():
    batch = make_batch(2, dtype=torch.float64)
    grads = []
    for method in (MMPareto(boost=1.0), UniformBaseline(weight=1.0)):
        torch.manual_seed(0)
        model = make_model(2, dtype=torch.float64)
        method.setup(model)
        with torch.no_grad():  # heads that want what the multimodal loss wants
            for u, columns in zip(model.modalities, model.fusion.linear.weight.split([7, 5], 1), strict=True):
                method.heads[u].weight.copy_(columns)
        method.backward(method(model(batch.inputs), batch.targets), model)
        grads.append([p.grad for p in (*model.parameters(), *method.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_accumulate_and_scale_linearly():
    model, method, batch = make_model(2, dtype=torch.float64), MMPareto(), make_batch(2, dtype=torch.float64)
    method.setup(model)

    def gradients(scales):
        model.zero_grad()
        method.zero_grad()
        for scale in scales:
            method.backward(method(model(batch.inputs), batch.targets), model, scale=scale)
        return [p.grad.clone() for p in (*model.parameters(), *method.parameters())]

    one, scaled, twice = gradients([1.0]), gradients([torch.tensor(1024.0)]), gradients([0.5, 0.5])
    for a, b, c in zip(one, scaled, twice, strict=True):
        torch.testing.assert_close(b, 1024 * a)
        torch.testing.assert_close(c, a)


def test_samples_without_a_modality_are_left_out_of_its_loss():
    mask = torch.tensor([True, False, True, False])
    model, method, batch = make_model(), MMPareto(), make_batch(batch_size=4, present={"video": mask})
    method.setup(model)
    terms = method(model(batch.inputs, batch.present), batch.targets).terms
    there = method(model({u: x[mask] for u, x in batch.inputs.items()}), batch.targets[mask]).terms
    torch.testing.assert_close(terms["video"], there["video"])


def test_frozen_parameters_stay_without_gradient():
    model, method, batch = make_model(2), MMPareto(), make_batch(2)
    method.setup(model)
    model.encoders["audio"].requires_grad_(False)
    method.backward(method(model(batch.inputs), batch.targets), model)
    assert all(p.grad is None for p in model.encoders["audio"].parameters())
    assert all(p.grad is not None for p in model.encoders["video"].parameters())


def test_predictions_of_modalities_are_the_heads():
    model, method, batch = make_model(2), MMPareto(), make_batch(2)
    with pytest.raises(RuntimeError, match="call `method.setup"):
        method(model(batch.inputs), batch.targets)
    with pytest.raises(RuntimeError, match="^MMPareto has heads "):
        method.predict(model(batch.inputs))
    with pytest.raises(RuntimeError, match="^MMPareto has heads "):
        method.losses(model(batch.inputs), batch.targets)
    method.setup(model)
    output = model(batch.inputs)
    prediction = method.predict(output)
    assert torch.equal(prediction.unimodal_logits["audio"], method.heads["audio"](output.features["audio"]))
    assert torch.equal(prediction.logits, output.logits)


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_resumed_run_continues_bit_for_bit(modalities):
    assert_resumes(MMPareto, modalities)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_the_order_of_modalities_does_not_matter(modalities):
    assert_any_order(MMPareto, modalities)


@pytest.mark.parametrize("modalities", [2, 3])
def test_half_precision(modalities):
    assert_half_precision(MMPareto, modalities)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_fusion(fusion, modalities):
    assert_every_fusion(MMPareto, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"boost": 0.0}, "`boost` should be a positive"), ({"rescale": "tensors"}, "Did you mean 'tensor'")],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        MMPareto(**parameters)


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not function.is_view
        return function(*args, **(kwargs or {}))


def test_gradients_are_combined_in_few_operations():
    """Per tensor of an encoder they would be a dozen times those of the joint backward pass."""
    encoders = {name: bmlr.encoders.resnet18(in_channels=1, width=2, stem="small") for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, 3)
    batch = bmlr.Batch({name: torch.randn(2, 1, 8, 8) for name in encoders}, torch.tensor([0, 1]))
    numbers = []
    for method in (bmlr.methods.Joint(), MMPareto()):
        method.setup(model)
        losses = method.compute_losses(model, batch)
        with Launches() as launches:
            method.backward(losses, model)
        numbers.append(launches.number)
    assert numbers[1] <= 4 * numbers[0]
