"""The Transformer encoder: padding, positions, precision, compilation, gradients, every method."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bmlr
from bmlr.encoders import TransformerEncoder
from method_loop import MethodLoop

STREAMS = {"text": 7, "vision": 5, "audio": 3}

#: Every method with its defaults, and those of other gradients; settings that make a short run do all there is.
METHODS: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in bmlr.methods.available()} | {
    "Remix": ("Remix", {"warmup": 0}),
    "ReconBoost": ("ReconBoost", {"t1": 1, "t2": 1, "hidden": 8}),
    "LFM, learnable": ("LFM", {"alpha": "learnable", "meta_size": 4, "meta_scope": "all"}),
}


def encoder(in_features=5, width=16, depth=2, heads=4, **options):
    torch.manual_seed(0)
    return TransformerEncoder(in_features, width, depth, heads, **options)


def sequences(lengths, steps, in_features=5, dtype=torch.float32):
    """Sequences padded at their tail."""
    x = torch.randn(len(lengths), steps, in_features, dtype=dtype)
    return x * (torch.arange(steps) < torch.tensor(lengths)[:, None])[..., None]


def shifted(x, lengths):
    """The same with the padding in front."""
    return torch.stack([row.roll(len(row) - length, 0) for row, length in zip(x, lengths, strict=True)])


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), before=st.integers(0, 6), after=st.integers(0, 6),
    seed=st.integers(0, 1000), gradient=st.booleans(),
)  # fmt: skip
def test_padding_changes_nothing_wherever_it_is(positions, lengths, before, after, seed, gradient):
    network = encoder(positions=positions, max_length=32).eval()
    torch.manual_seed(seed)
    x = sequences(lengths, 9)
    with torch.set_grad_enabled(gradient):  # without, PyTorch may take its fast path
        alone = torch.cat([network(x[i : i + 1, :length]) for i, length in enumerate(lengths)])
        for padded in (x, shifted(x, lengths), nn.functional.pad(x, (0, 0, before, after))):
            torch.testing.assert_close(network(padded), alone, rtol=0, atol=1e-6)


def test_front_and_tail_padding_in_double_precision():
    network = encoder().double().eval()
    lengths = [1, 4, 12, 7]
    x = sequences(lengths, 12, dtype=torch.float64)
    torch.testing.assert_close(network(x), network(shifted(x, lengths)), rtol=0, atol=1e-13)


def test_a_step_of_zeros_between_others_is_left_out_but_counted():
    network = encoder().eval()
    x = torch.randn(1, 6, 5)
    gap = x.clone()
    gap[:, 2] = 0
    joined = torch.cat((x[:, :2], x[:, 3:]), 1)
    assert not torch.allclose(network(gap), network(x), atol=1e-4)
    assert not torch.allclose(network(gap), network(joined), atol=1e-4)  # the later steps are one step later
    flat = encoder(positions="learned").eval()
    nn.init.zeros_(flat.positions.weight)
    torch.testing.assert_close(flat(gap), flat(joined), rtol=0, atol=1e-6)


def test_order_matters_by_the_positions_alone():
    network = encoder().eval()
    x = torch.randn(2, 6, 5)
    assert not torch.allclose(network(x), network(x.flip(1)), atol=1e-4)
    flat = encoder(positions="learned").eval()
    nn.init.zeros_(flat.positions.weight)
    torch.testing.assert_close(flat(x), flat(x.flip(1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids_are_those_of_the_formula(width):
    network = encoder(width=width, heads=1)
    pairs = math.ceil(width / 2)
    encoded = network._encoded(torch.tensor([[0, 3, 250]]))[0]
    for row, position in zip(encoded, (0, 3, 250), strict=True):
        for k in range(width):
            angle = position / 10_000 ** ((k // 2) / pairs)
            assert row[k].item() == pytest.approx((math.sin, math.cos)[k % 2](angle), abs=2e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("everyone", [True, False])
def test_padding_alone_has_zero_features_and_finite_gradients(training, everyone):
    network = encoder(dropout=0.3).train(training)
    x = sequences([0, 0, 0] if everyone else [0, 4, 0], 6).requires_grad_()
    features = network(x)
    assert (features[0] == 0).all()
    assert (features[2] == 0).all()
    assert bool(features[1].any()) is not everyone
    features.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert (x.grad[0] == 0).all()
    with torch.no_grad():
        assert (network(x)[0] == 0).all()


def test_a_sample_does_not_depend_on_its_batch():
    network = encoder().eval()
    x = sequences([3, 0, 9, 5], 9)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            alone = torch.cat([network(row[None]) for row in x])
            torch.testing.assert_close(network(x), alone, rtol=0, atol=1e-6)


def test_pytorchs_fast_path_gives_the_same():
    """In evaluation without gradient PyTorch runs a fused layer, with no word about it."""
    network = encoder().eval()
    x = sequences([3, 0, 9, 5], 9)
    slow = network(x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        torch.testing.assert_close(network(x), slow, rtol=0, atol=1e-6)


def test_layers_start_from_different_weights():
    first, second = encoder().layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_dropout_acts_in_training_only():
    network = encoder(dropout=0.5)
    x = torch.randn(2, 6, 5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_autocast(training):
    network = encoder(dropout=0.0).train(training)
    x = sequences([3, 0, 9, 5], 9)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(x)
        features.sum().backward()
    assert (features[1] == 0).all()
    torch.testing.assert_close(features.float(), network(x), rtol=0.1, atol=0.05)
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    network = encoder().to(dtype).eval()
    x = sequences([3, 0, 9], 9, dtype=dtype)
    features = network(x)
    assert features.dtype == dtype
    assert torch.isfinite(features).all()
    reference = copy.deepcopy(network).float()(x.float())
    torch.testing.assert_close(features.float(), reference, rtol=0.1, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_gradients_are_right():
    network = encoder(3, 4, 1, 2).double().eval()
    x = sequences([2, 3], 3, 3, torch.float64)
    x[x == 0] += 1e-300  # real to the network, so that a step of the check crosses no border
    torch.autograd.gradcheck(network, (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True),))
    with sdpa_kernel(SDPBackend.MATH):
        torch.autograd.gradgradcheck(network, (torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize(("positions", "training"), [("sinusoidal", True), ("learned", False)])
def test_compiles_to_one_graph(positions, training):
    torch._dynamo.reset()
    network = encoder(depth=1, positions=positions, dropout=0.0).train(training)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    for lengths, steps in (([3, 0, 9, 5], 9), ([1, 12], 12)):  # another shape too
        x = sequences(lengths, steps)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-6)
    compiled(x).sum().backward()
    network(x).sum().backward()
    for p, q in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_copies_and_state():
    network = encoder(positions="learned")
    other = copy.deepcopy(network)
    fresh = TransformerEncoder(5, 16, positions="learned")
    fresh.load_state_dict(network.state_dict())
    x = torch.randn(2, 4, 5)
    for same in (other, fresh):
        assert torch.equal(same.eval()(x), network.eval()(x))
    with torch.no_grad():
        other.projection.weight.zero_()
    assert network.projection.weight.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"in_features": 0}, "`in_features` should be an integer of at least 1"),
        ({"width": 0}, "`width`"),
        ({"width": 18}, "`width` should be a multiple of `heads = 4`. Found `width = 18`"),
        ({"depth": 0}, "`depth`"),
        ({"heads": 0}, "`heads`"),
        ({"dropout": 1.0}, r"`dropout` should lie in \[0, 1\). Found `dropout = 1.0`"),
        ({"dropout": math.nan}, "`dropout`"),
        ({"max_length": 0}, "`max_length`"),
        ({"positions": "learnt"}, "Did you mean 'learned'"),
    ],
)
def test_parameters_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        encoder(**options)


def test_inputs_that_do_not_fit():
    network = encoder(positions="learned", max_length=4)
    for x in (torch.randn(2, 5), torch.randn(2, 3, 4), torch.randn(2, 0, 5)):
        with pytest.raises(ValueError, match=r"shape \(B, T, 5\) with T at least 1. Found \("):
            network(x)
    with pytest.raises(ValueError, match=r"at most `max_length = 4` time steps .* Found 5"):
        network(torch.randn(2, 5, 5))
    assert encoder(max_length=4)(torch.randn(2, 9, 5)).shape == (2, 16)


# With the methods


def trimodal_model(dtype=torch.float64):
    torch.manual_seed(0)
    encoders = {name: encoder(width_in, 8, 1, 2, dropout=0.0) for name, width_in in STREAMS.items()}
    return bmlr.MultimodalClassifier(encoders, 4).to(dtype)


def trimodal_batch(samples=18, dtype=torch.float64, *, missing=False):
    generator = torch.Generator().manual_seed(1)
    inputs, present = {}, {}
    for place, (name, width) in enumerate(STREAMS.items()):
        lengths = torch.randint(0 if missing else 1, 7, (samples,), generator=generator)
        x = torch.randn(samples, 6, width, generator=generator, dtype=dtype)
        inputs[name] = x * (torch.arange(6) < lengths[:, None])[..., None]
        present[name] = lengths > 0
        if missing:
            present[name][place] = False
            inputs[name][place] = 0
    targets = torch.randint(0, 4, (samples,), generator=generator)
    return bmlr.Batch(inputs, targets, present if missing else None, torch.arange(samples))


@pytest.mark.parametrize("subject", METHODS)
def test_every_method_trains_it(subject):
    """An epoch of each, with the double backward of a learnable LFM and the zero inputs of AGM among them."""
    name, parameters = METHODS[subject]
    loop = MethodLoop(trimodal_model(), bmlr.methods.create(name, **parameters), trimodal_batch(), max_epochs=3)
    before = copy.deepcopy(loop.model.state_dict())
    loop.run(range(2))
    after = loop.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("encoders.text.layers") for name in moved) == loop.method.trains
    prediction = loop.method.eval().predict(loop.model.eval()(loop.train.inputs))
    assert torch.isfinite(prediction.logits).all()


def test_zero_inputs_are_absent_modalities():
    """To the model a modality of padding alone is as good as one that is marked absent."""
    model, batch = trimodal_model().eval(), trimodal_batch(missing=True)
    masked, zeros = model(batch.inputs, batch.present), model(batch.inputs)
    for name in STREAMS:
        assert (zeros.features[name][~batch.present[name]] == 0).all()
        torch.testing.assert_close(masked.features[name], zeros.features[name], rtol=0, atol=1e-12)
    torch.testing.assert_close(masked.logits, zeros.logits, rtol=0, atol=1e-12)


def test_bmlr_reshapes_the_strongest_of_those_present_by_the_weakest():
    model, batch = trimodal_model(), trimodal_batch(60, missing=True)
    output = model(batch.inputs, batch.present)
    method = bmlr.BMLR(alpha=1.0, beta=0.0)
    labels, intensity = method.reshape(output.encoder_logits, batch.targets, batch.present)
    names, sizes = list(STREAMS), set()
    for i, y in enumerate(batch.targets.tolist()):
        there = [name for name in names if batch.present[name][i]]
        sizes.add(len(there))
        confidence = {u: output.unimodal_logits[u][i].softmax(0)[y].item() for u in there}
        strongest = max(there, key=confidence.get) if there else None
        for name in names:
            if len(there) < 2 or name != strongest:
                assert intensity[name][i] == 0
                assert labels[name][i].argmax() == y
                assert labels[name][i].max() == 1
            else:
                ratio = confidence[name] / min(confidence.values())
                assert intensity[name][i].item() == pytest.approx(1 - 1 / ratio, abs=1e-9)
    assert {2, 3} <= sizes
    losses = method.compute_losses(model, batch)
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_missing_modalities_train():
    loop = MethodLoop(trimodal_model(), bmlr.BMLR(), trimodal_batch(missing=True), max_epochs=2)
    before = copy.deepcopy(loop.model.state_dict())
    loop.run(range(2))
    for name, value in loop.model.state_dict().items():
        assert torch.isfinite(value).all()
        assert "in_proj_bias" in name or not torch.equal(value, before[name]), name
