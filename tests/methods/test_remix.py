import copy
import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import UniformBaseline
from bmlr.methods._remix import Remix, prediction_entropy
from method_loop import (
    MethodLoop,
    assert_any_order,
    assert_every_fusion,
    assert_half_precision,
    assert_resumes,
    stored,
    take,
)
from zoo import make_batch, make_model


def set_up(method, model):
    method.setup(model)
    return method


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=2, max_size=8))
def test_entropy_agrees_with_a_literal_version_to_the_last_digits_of_float32(row):
    row = torch.tensor([row])
    with localcontext() as context:
        context.prec = 60
        powers = [Decimal(x).exp() for x in row[0].tolist()]
        literal = -sum(x / sum(powers) * (x / sum(powers)).ln() for x in powers)
    assert prediction_entropy(row).item() == pytest.approx(float(literal), rel=2e-5)


def test_entropy_of_uniform_and_one_hot_predictions_and_of_a_masked_class():
    torch.testing.assert_close(prediction_entropy(torch.zeros(1, 6)), torch.tensor([math.log(6)]))
    assert prediction_entropy(torch.tensor([[300.0, 0, 0, 0, 0, 0]])).item() == 0
    masked = torch.tensor([[0.0, 0.0, -math.inf]])
    torch.testing.assert_close(prediction_entropy(masked), torch.tensor([math.log(2)]))


def test_sure_predictions_are_told_apart():
    """D = log₂ C − H is one number for them in float32, and a tie would go to the last modality."""
    model = make_model()
    method = set_up(Remix(), model)
    for p in method.parameters():
        torch.nn.init.zeros_(p)
    for audio, video, expected in ((30.0, 31.0, 0), (31.0, 30.0, 1), (30.0, 30.0, 1)):
        method.heads["audio"].bias.data[0], method.heads["video"].bias.data[0] = audio, video
        assert method.least_confident(model(make_batch(2, 4).inputs)).tolist() == [expected] * 4


def planned(loop, epoch):
    return {p.tag: p.indices for p in loop.method.start_epoch(loop.context(epoch)).passes}


@pytest.mark.parametrize("modalities", [2, 3])
def test_subsets_partition_the_training_split_by_the_least_sure_modality(modalities):
    model, train = make_model(modalities, batch_norm=True), make_batch(modalities, 25)
    loop = MethodLoop(model, Remix(warmup=0), train)
    model.train()
    passes = planned(loop, 0)
    assert list(passes) == [f"remix:{name}" for name in reversed(model.modalities) if f"remix:{name}" in passes]
    assert sorted(i for indices in passes.values() for i in indices) == list(range(25))
    model.eval()
    logits = loop.method.predict(model(train.inputs)).unimodal_logits
    entropies = {name: prediction_entropy(values).tolist() for name, values in logits.items()}
    for tag, indices in passes.items():
        for i in indices:
            assert entropies[tag.removeprefix("remix:")][i] == max(values[i] for values in entropies.values())
    assert len(passes) > 1


def test_the_remix_pass_changes_nothing_in_the_model():
    loop = MethodLoop(make_model(batch_norm=True), Remix(warmup=0), make_batch(batch_size=12))
    loop.model.train()
    loop.model.encoders["audio"].eval()
    modes, state = [m.training for m in loop.model.modules()], copy.deepcopy(loop.model.state_dict())
    loop.method.start_epoch(loop.context(0))
    assert [m.training for m in loop.model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in loop.model.state_dict().items())


def test_ties_go_to_the_last_modality():
    model = make_model(3)
    method = set_up(Remix(), model)
    for p in method.parameters():
        torch.nn.init.zeros_(p)
    assert method.least_confident(model(make_batch(3, 4).inputs)).tolist() == [2, 2, 2, 2]


def test_no_sample_goes_to_a_modality_it_lacks():
    present = {"video": torch.tensor([True, False] * 10), "audio": torch.tensor([False, True] * 10)}
    loop = MethodLoop(make_model(), Remix(warmup=0), make_batch(batch_size=20, present=present))
    assert planned(loop, 0) == {"remix:video": tuple(range(0, 20, 2)), "remix:audio": tuple(range(1, 20, 2))}


def test_warm_up_is_the_uniform_baseline_bit_for_bit():
    model, batch = make_model(3), make_batch(3)
    torch.manual_seed(1)
    remix = set_up(Remix(warmup=3), model)
    torch.manual_seed(1)
    uniform = set_up(UniformBaseline(0.5), model)
    assert torch.equal(remix.compute_losses(model, batch).total, uniform.compute_losses(model, batch).total)
    loop = MethodLoop(make_model(), remix, make_batch(batch_size=12))
    assert [planned(loop, epoch) for epoch in range(3)] == [{"": None}] * 3
    assert "" not in planned(loop, 3)


def test_warm_up_counts_who_is_there():
    present = {"video": torch.arange(8) % 3 != 0}
    model, batch = make_model(), make_batch(present=present)
    torch.manual_seed(1)
    remix = set_up(Remix(weight=0.3), model)
    torch.manual_seed(1)
    uniform = set_up(UniformBaseline(0.3), model)
    terms = remix.compute_losses(model, batch).terms
    for name, value in uniform.compute_losses(model, batch).terms.items():
        assert torch.equal(terms[name], value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ([0, 1, 1, 1], {"remix:video": (1, 2, 3), "remix:audio": (0, 0)}),
        ([0, 1, 1, 0], {"remix:video": (1, 2), "remix:audio": (0, 3)}),
        ([0, 0, 0, 0], {"remix:audio": (0, 1, 2, 3)}),
    ],
)
def test_a_sample_alone_comes_twice_and_nobody_comes_not_at_all(assignment, expected):
    loop = MethodLoop(make_model(), Remix(warmup=0), make_batch(batch_size=4))
    loop.method._assign = lambda _: torch.tensor(assignment)
    assert planned(loop, 5) == expected


def tagged(name, **options):
    batch = make_batch(**options)
    batch.tag = f"remix:{name}"
    return batch


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("masked_encoder", ["run", "skip"])
def test_losses_of_one_modality_are_those_of_zeroed_features(masked_encoder, fusion):
    model, batch = make_model(3, fusion), tagged("video", modalities=3)
    method = set_up(Remix(gamma=0.7, masked_encoder=masked_encoder), model)
    terms = method.compute_losses(model, batch).terms
    output = model(batch.inputs)
    assert set(terms) == {"fused", "video"}
    torch.testing.assert_close(terms["fused"], F.cross_entropy(output.subset_logits(["video"]), batch.targets))
    head = method.heads["video"](output.features["video"])
    torch.testing.assert_close(terms["video"], 0.7 * F.cross_entropy(head, batch.targets))


def official_step(model, method, batch, kept):
    """As the official code goes: both encoders in the graph, the masked feature overwritten by zero."""
    features = {name: model.encode(name, x) for name, x in batch.inputs.items()}
    for name in set(features) - {kept}:
        features[name] = features[name].clone()
        features[name][:] = 0.0
    loss = F.cross_entropy(model.fusion(features), batch.targets)
    (loss + F.cross_entropy(method.heads[kept](features[kept]), batch.targets)).backward()


@pytest.mark.parametrize("modalities", [2, 3])
def test_masked_encoders_that_run_have_zero_gradients_and_move_their_batch_statistics(modalities):
    model, batch = make_model(modalities, batch_norm=True), tagged("video", modalities=modalities)
    method = set_up(Remix(), model)
    reference = copy.deepcopy(model)
    official_step(reference, method, batch, "video")
    heads = {name: p.grad for name, p in method.named_parameters()}
    method.zero_grad()
    method.backward(method.compute_losses(model, batch), model)
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    assert all(p.grad is not None and not p.grad.any() for p in model.encoders["audio"].parameters())
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    for name, p in method.named_parameters():
        assert (p.grad is None) == (heads[name] is None) == ("video" not in name)


def test_masked_encoders_that_are_skipped_are_left_alone():
    model, batch = make_model(batch_norm=True), tagged("video")
    method = set_up(Remix(masked_encoder="skip"), model)
    before = copy.deepcopy(model.encoders["audio"].state_dict())
    method.backward(method.compute_losses(model, batch), model)
    assert all(p.grad is None for p in model.encoders["audio"].parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.encoders["audio"].state_dict().items())


def test_gradients_of_accumulated_batches_add_up():
    model, method = make_model(), Remix()
    method.setup(model)
    method.backward(method.compute_losses(model, tagged("audio")), model)
    audio = next(model.encoders["audio"].parameters()).grad.clone()
    method.backward(method.compute_losses(model, tagged("video")), model)
    assert torch.equal(next(model.encoders["audio"].parameters()).grad, audio)


def test_gradients_scale_with_the_loss():
    model, method, batch = make_model(dtype=torch.float64), Remix(), tagged("video", dtype=torch.float64)
    method.setup(model)
    gradients = []
    for options in ({}, {"scale": 8.0}):
        model.zero_grad()
        method.backward(method.compute_losses(model, batch), model, **options)
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, eight in zip(*gradients, strict=True):
        torch.testing.assert_close(eight, 8 * one)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("masked_encoder", ["run", "skip"])
def test_resumes_bit_for_bit(masked_encoder, modalities):
    # A modality may be left with a single sample, on which batch normalisation of vectors cannot be trained.
    assert_resumes(lambda: Remix(warmup=1, masked_encoder=masked_encoder), modalities, batch_norm=False)


def test_state_holds_the_assignment():
    train = make_batch(batch_size=30)
    loop = MethodLoop(make_model(), Remix(warmup=0), train)
    planned(loop, 0)
    state = stored(loop.method.state_dict())
    other = MethodLoop(make_model(seed=5), Remix(warmup=0), train)
    other.method.load_state_dict(state)
    assert torch.equal(other.method.assignment, loop.method.assignment)
    planned(other, 1)
    assert not torch.equal(other.method.assignment, loop.method.assignment)


def test_shuffled_order():
    loop = MethodLoop(make_model(), Remix(warmup=1, order="shuffled"), make_batch(batch_size=12))
    assert loop.method.start_epoch(loop.context(0)).order == "sequential"
    assert loop.method.start_epoch(loop.context(1)).order == "shuffled"


@pytest.mark.parametrize("tag", ["", "remix:video"])
def test_order_of_modalities_does_not_matter(tag):
    assert_any_order(Remix, ("audio", "video", "text"), tag)


@pytest.mark.parametrize("tag", ["", "remix:video"])
def test_half_precision(tag):
    assert_half_precision(Remix, 3, tag)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_every_fusion(fusion, modalities):
    assert_every_fusion(lambda: Remix(warmup=1), fusion, modalities)


def test_auxiliary_readouts_learn_from_the_features_that_are_there():
    model, batch = make_model(2, "concat", unimodal="auxiliary"), tagged("video")
    terms = set_up(Remix(), model).compute_losses(model, batch).terms
    assert set(terms) == {"fused", "video", "video_readout"}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"warmup": -1}, "warmup"),
        ({"weight": -0.5}, "weight"),
        ({"gamma": math.inf}, "gamma"),
        ({"masked_encoder": "drop"}, "masked_encoder"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        Remix(**parameters)


def test_bad_batches():
    model = make_model()
    method = set_up(Remix(), model)
    with pytest.raises(ValueError, match="`tag` should be one of audio, video"):
        method.compute_losses(model, tagged("text"))
    batch = tagged("video")
    del batch.inputs["audio"]
    with pytest.raises(ValueError, match="`inputs` should have the modalities"):
        method.compute_losses(model, batch)
    batch = tagged("video")
    batch.targets = batch.targets + 3
    with pytest.raises(ValueError, match="`targets` should lie in"):
        method.compute_losses(model, batch)


def test_training_splits_that_do_not_tell_or_cover_their_samples():
    train = make_batch(batch_size=12)
    loop = MethodLoop(make_model(), Remix(warmup=0), train)
    context = loop.context(0)
    context.train_batches = lambda: iter([take(train, torch.arange(9))])
    with pytest.raises(ValueError, match="3 are missing"):
        loop.method.start_epoch(context)
    train.indices = None
    with pytest.raises(ValueError, match=r"^Remix needs `indices` in the batches of the training split\. Found"):
        loop.method.start_epoch(loop.context(0))


def test_needs_setup():
    model, batch = make_model(), make_batch()
    with pytest.raises(RuntimeError, match=r"^Remix has heads .* call `method\.setup\(model\)` once, before"):
        Remix().compute_losses(model, batch)
    with pytest.raises(RuntimeError, match="^Remix has heads "):
        Remix().predict(model(batch.inputs))
    with pytest.raises(RuntimeError, match="^Remix has heads "):
        Remix().least_confident(model(batch.inputs))
