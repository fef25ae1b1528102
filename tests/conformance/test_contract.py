"""What holds for every registered method, on any model: steps, names, edges of the input, state, evaluation."""

import copy
import dataclasses
import inspect
import itertools
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import load_model, save_model
from subjects import (
    COMBINATIONS,
    FUSIONS,
    METHODS,
    NOT_MEAN_OVER_SAMPLES,
    SUBJECTS,
    base,
    compute,
    conditioner,
    gradients,
    kinds,
    make_loop,
    make_method,
    method_class,
    parameters,
    same,
    trained_modalities,
    with_fusions,
    with_two_or_three,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bmlr
from bmlr.encoders import resnet18
from bmlr.encoders.features import masked_features
from bmlr.methods import Method
from bmlr.methods._support import SteppedMethod
from bmlr.training import evaluate
from host_reads import reads_or_copies
from method_loop import MethodLoop, assert_resumes, assert_same_state
from zoo import make_batch, make_model

each_combination = pytest.mark.parametrize(("subject", "fusion", "modalities"), with_fusions(COMBINATIONS))
each_usual_combination = pytest.mark.parametrize(
    ("subject", "fusion", "modalities"), with_fusions(COMBINATIONS, of_firsts=False)
)
each_subject = pytest.mark.parametrize("subject", SUBJECTS)
each_subject_of_two_or_three = pytest.mark.parametrize(("subject", "modalities"), with_two_or_three(SUBJECTS))


# What a class says of itself


@pytest.mark.parametrize("name", METHODS)
def test_parameters_named_by_a_class_are_its_own(name):
    cls = bmlr.methods.get(name)
    fixed = filter(None, [cls.conformance.order_parameter, cls.conformance.modality_parameter])
    settings = [cls.conformance.short, *cls.conformance.variants.values()]
    named = {*cls.epoch_parameters, *cls.pass_parameters, *fixed, *(key for values in settings for key in values)}
    assert named <= set(cls().hparams)


# Training


def assert_trains(loop, epochs, subject):
    """Every encoder that it trains moves, all stays finite, predictions have their shapes; the loop looks at losses."""
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.run(range(epochs))
    for name, p in parameters(loop.model, loop.method).items():
        assert bool(torch.isfinite(p).all()), name
    trained = trained_modalities(subject, loop.model.modalities)
    for name, p in loop.model.encoders.named_parameters(prefix="encoders"):
        assert torch.equal(p, before[name]) == (name.split(".")[1] not in trained), name
    loop.model.eval()
    with torch.no_grad():
        prediction = loop.method.predict(loop.model(loop.train.inputs))
    shape = (len(loop.train), loop.model.task.num_outputs)
    assert prediction.logits.shape == shape
    one = method_class(subject).conformance.modality_parameter
    assert set(prediction.unimodal_logits) == set(loop.model.modalities[: 1 if one else None])
    assert all(logits.shape == shape for logits in prediction.unimodal_logits.values())
    assert all(bool(torch.isfinite(x).all()) for x in (prediction.logits, *prediction.unimodal_logits.values()))


@each_combination
def test_training_moves_every_encoder(subject, fusion, modalities):
    loop = make_loop(subject, modalities, fusion, dtype=torch.float32)
    assert_trains(loop, modalities, subject)
    assert all(p.dtype == torch.float32 for p in parameters(loop.model, loop.method).values())


@pytest.mark.parametrize("precision", ["float64", "bfloat16 autocast"])
@each_usual_combination
def test_training_in_another_precision_moves_every_encoder(subject, fusion, modalities, precision):
    dtype = torch.float64 if precision == "float64" else torch.float32
    loop = make_loop(subject, modalities, fusion, dtype=dtype, autocast=precision != "float64")
    assert_trains(loop, modalities, subject)
    assert all(p.dtype == dtype for p in parameters(loop.model, loop.method).values())


class TinyTransformer(nn.Module):
    """One block of attention over a sequence, and the mean over it."""

    num_features = 8

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(width, 8)
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def forward(self, x):
        return self.blocks(self.embed(x)).mean(1)


def make_any_encoder_loop(subject, modalities=3, *, dtype=torch.float32, samples=12):
    """Attention with dropout, convolutions with batch normalisation, and a perceptron."""
    torch.manual_seed(0)
    encoders = {
        "text": TinyTransformer(5),
        "image": resnet18(in_channels=1, width=2, stem="small"),
        "sensor": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7)),
    }
    inputs = {
        "text": torch.randn(samples, 3, 5),
        "image": torch.randn(samples, 1, 8, 8),
        "sensor": torch.randn(samples, 4),
    }
    names = list(encoders)[:modalities]
    model = bmlr.MultimodalClassifier({name: encoders[name] for name in names}, 3).to(dtype)
    batch = bmlr.Batch(
        {name: inputs[name].to(dtype) for name in names}, torch.arange(samples) % 3, indices=torch.arange(samples)
    )
    return MethodLoop(model, make_method(subject), batch, batch_size=6, max_epochs=modalities)


@each_subject_of_two_or_three
def test_any_encoder_is_trained(subject, modalities):
    assert_trains(make_any_encoder_loop(subject, modalities), modalities, subject)


@pytest.mark.parametrize("fusion", FUSIONS)
@each_subject
def test_a_single_modality_is_trained_or_refused(subject, fusion):
    names = ("audio",)
    torch.manual_seed(0)
    model, batch = make_model(names, fusion), make_batch(names, 18)
    if method_class(subject).min_modalities > 1:
        with pytest.raises(ValueError, match=f"^Method {base(subject)} needs a model of at least 2 modalities. Found "):
            make_method(subject).setup(model)
    else:
        assert_trains(MethodLoop(model, make_method(subject), batch, max_epochs=2), 2, subject)


# Names


@each_combination
def test_renamed_modalities_give_the_same_training(subject, fusion, modalities):
    same_order = {"audio": "alpha", "text": "mike", "video": "yankee"}
    other_order = {"audio": "yankee", "text": "mike", "video": "alpha"}
    names = same_order if method_class(subject).conformance.sorted_names else other_order
    loop = make_loop(subject, modalities, fusion)
    torch.manual_seed(0)
    batch = make_batch(modalities, 18, dtype=torch.float64)
    renamed = MethodLoop(
        make_model(modalities, fusion, dtype=torch.float64, names=names, **conditioner(fusion, names["video"])),
        make_method(subject),
        dataclasses.replace(batch, inputs={names[name]: x for name, x in batch.inputs.items()}),
        max_epochs=modalities,
    )
    loop.run(range(modalities))
    renamed.run(range(modalities))

    def rename(key):
        return ".".join(names.get(split, split) for split in key.split("."))

    for key, value in loop.model.state_dict().items():
        assert torch.equal(renamed.model.state_dict()[rename(key)], value), key
    predictions = [run.method.predict(run.model(run.train.inputs)) for run in (loop, renamed)]
    assert torch.equal(predictions[0].logits, predictions[1].logits)
    for name, logits in predictions[0].unimodal_logits.items():
        assert torch.equal(predictions[1].unimodal_logits[names[name]], logits)


def relisted(loop, subject, fusion):
    """The same model and method with the modalities listed the other way round."""
    names = loop.model.modalities
    model = make_model(names[::-1], fusion, dtype=torch.float64, seed=1, **conditioner(fusion))
    state = loop.model.state_dict()
    if fusion == "concat":  # the columns of the one weight stand in the listed order
        widths = [loop.model.fusion.feature_dims[name] for name in names]
        state["fusion.linear.weight"] = torch.cat(state["fusion.linear.weight"].split(widths, 1)[::-1], 1)
    expected = method_class(subject).conformance
    fixed = {expected.order_parameter: tuple(names), expected.modality_parameter: names[0]}
    method = make_method(subject, **{parameter: value for parameter, value in fixed.items() if parameter})
    batch = dataclasses.replace(loop.train, inputs={name: loop.train.inputs[name] for name in names[::-1]})
    other = MethodLoop(model, method, batch, max_epochs=loop.max_epochs)
    model.load_state_dict(state)
    method.load_state_dict(loop.method.state_dict())
    return other


@each_combination
def test_the_order_in_which_modalities_are_listed_does_not_matter(subject, fusion, modalities):
    loop = make_loop(subject, modalities, fusion)
    for first, batch in kinds(loop):
        second = relisted(first, subject, fusion)
        second.model.train()
        results = []
        for run in (first, second):
            losses = compute(run, dataclasses.replace(run.train, tag=batch.tag))
            run.method.adjust_gradients(run.model)
            run.model.eval()
            prediction = run.method.predict(run.model(run.train.inputs))
            kept = {
                k: g for k, g in gradients(run.model, run.method).items() if not k.startswith("model.fusion.linear")
            }
            logits = {"fused": prediction.logits, **prediction.unimodal_logits}
            results.append(({**losses.terms}, kept, logits))
        for one, other in zip(*results, strict=True):
            assert one.keys() == other.keys()
            assert same(one, other, rtol=1e-10, atol=1e-12), batch.tag


# Draws


@pytest.mark.parametrize("name", [name for name in METHODS if "seed" in method_class(name)().hparams])
def test_draws_depend_on_the_seed_of_the_run_and_on_its_own(name):
    def weights(subject, run_seed, seed):
        loop = make_loop(subject, epochs=2)
        loop.seed, loop.method.seed = run_seed, seed
        loop.run([0, 1])
        return loop.state()["model"]

    def differ(subject, first, second):
        return not same(weights(subject, *first), weights(subject, *second), rtol=0, atol=0)

    # A variant may draw nothing.
    subjects = [subject for subject in SUBJECTS if base(subject) == name]
    assert any(differ(subject, (0, 0), (seed, 0)) for subject in subjects for seed in (1, 2, 3, 4))
    assert any(differ(subject, (0, 0), (0, seed)) for subject in subjects for seed in (1, 2, 3, 4))
    assert not any(differ(subject, (1, 0), (1, 0)) for subject in subjects)


# Edges of the input


def assert_finite_step(loop, batch):
    losses = compute(loop, batch)
    for name, value in losses.terms.items():
        assert bool(torch.isfinite(value)), name
    loop.method.adjust_gradients(loop.model)
    for name, gradient in gradients(loop.model, loop.method).items():
        assert bool(torch.isfinite(gradient).all()), name


@each_combination
def test_thin_batches_give_finite_steps(subject, fusion, modalities):
    loop = make_loop(subject, modalities, fusion, dtype=torch.float32)
    batch = make_batch(modalities, 6)
    one_class = dataclasses.replace(batch, targets=torch.full_like(batch.targets, 2))
    constant = dataclasses.replace(batch, inputs={name: torch.zeros_like(x) for name, x in batch.inputs.items()})
    for fresh, planned in kinds(loop):
        for thin in (make_batch(modalities, 1), one_class, constant):
            assert_finite_step(copy.deepcopy(fresh), dataclasses.replace(thin, tag=planned.tag))


@each_combination
def test_saturated_and_flat_logits_give_finite_steps(subject, fusion, modalities):
    for fresh, batch in kinds(make_loop(subject, modalities, fusion, dtype=torch.float32)):
        for factor in (1e4, 0.0):
            loop = copy.deepcopy(fresh)
            with torch.no_grad():
                for weight in (*loop.model.fusion.parameters(), *(p for p in loop.method.parameters() if p.ndim)):
                    weight.mul_(factor)
            assert_finite_step(loop, batch)


@each_subject
def test_targets_that_do_not_fit_are_named(subject):
    loop = make_loop(subject)
    for fresh, batch in kinds(loop):
        with pytest.raises(ValueError, match="`targets` should lie in"):
            fresh.method.compute_losses(fresh.model, dataclasses.replace(batch, targets=batch.targets + 3))
        with pytest.raises(ValueError, match="`targets` should have shape"):
            fresh.method.compute_losses(fresh.model, dataclasses.replace(batch, targets=batch.targets[:-1]))
        with pytest.raises(ValueError, match="`inputs` should have the modalities"):
            inputs = {"audio": batch.inputs["audio"]}
            fresh.method.compute_losses(fresh.model, dataclasses.replace(batch, inputs=inputs))


@each_subject
def test_absent_modalities_give_finite_steps_and_leave_their_inputs_unread(subject):
    loop = make_loop(subject, 3, dtype=torch.float32)
    present = {"audio": torch.arange(18) % 3 != 0, "text": torch.arange(18) % 2 == 0}
    spoilt = {name: x.clone() for name, x in loop.train.inputs.items()}
    for name, mask in present.items():
        spoilt[name][~mask] = torch.nan
    for fresh, batch in kinds(loop, dataclasses.replace(loop.train, inputs=spoilt, present=present)):
        if method_class(subject).needs_all_modalities:
            with pytest.raises(ValueError, match="`present`"):
                compute(fresh, batch)
        else:
            assert_finite_step(fresh, batch)


# State


@pytest.mark.parametrize(
    ("subject", "fusion", "modalities"),
    with_fusions(itertools.product(SUBJECTS, ["concat", "own"]), of_firsts=False),
)
def test_a_run_continues_from_stored_state(subject, fusion, modalities):
    assert_resumes(lambda: make_method(subject), modalities, fusion=fusion)


@each_subject_of_two_or_three
def test_a_copy_continues_as_the_original(subject, modalities):
    loop = make_loop(subject, modalities, batch_norm=True, epochs=2 * modalities)
    loop.run(range(modalities))
    other = copy.deepcopy(loop)
    loop.run(range(modalities, 2 * modalities))
    other.run(range(modalities, 2 * modalities))
    assert_same_state(other.state()["model"], loop.state()["model"])
    assert_same_state(other.state()["method"], loop.state()["method"])


@each_subject
def test_a_method_keeps_no_graph_between_steps(subject):
    """What is left after a step could be copied and stored: it holds no activations alive."""
    loop = make_loop(subject)
    for fresh, batch in kinds(loop):
        fresh.step(batch)
        for name, value in vars(fresh.method).items():
            assert not (isinstance(value, torch.Tensor) and value.requires_grad), name
        copy.deepcopy(fresh.method)


@each_subject
def test_state_is_plain_and_complete(subject):
    loop = make_loop(subject, epochs=2)
    loop.run([0, 1])
    state = copy.deepcopy(loop.method.state_dict())
    fresh = make_loop(subject, epochs=2).method
    fresh.load_state_dict(state)
    assert_same_state(fresh.state_dict(), state)


@each_subject
def test_setup_again_starts_over(subject):
    loop = make_loop(subject, epochs=2)
    loop.run([0, 1])
    other = make_loop(subject, epochs=2)
    again = MethodLoop(other.model, loop.method, other.train, max_epochs=2)
    assert {name: p.shape for name, p in again.method.named_parameters()} == {
        name: p.shape for name, p in other.method.named_parameters()
    }


class Saved(nn.Module):
    """A model that holds its method, as one saved by the Hugging Face Trainer does."""

    def __init__(self, loop):
        super().__init__()
        self.net, self.method = loop.model, loop.method


@each_subject_of_two_or_three
def test_a_model_with_the_method_inside_goes_on_from_safetensors_within_an_epoch(subject, modalities, tmp_path):
    loop = make_loop(subject, modalities, batch_norm=True, samples=30, epochs=2)
    loop.run([0])
    first, second = copy.deepcopy(loop), copy.deepcopy(loop)
    plan = first.method.start_epoch(first.context(1))
    second.method.start_epoch(second.context(1))
    batches = list(first.batches(plan, 1))
    for planned in batches[:1]:
        for run in (first, second):
            run.take_step(*planned)
    save_model(Saved(second), str(tmp_path / "model.safetensors"))
    third = make_loop(subject, modalities, batch_norm=True, samples=30, epochs=2)
    load_model(Saved(third), str(tmp_path / "model.safetensors"))
    third.optimizer.load_state_dict(second.optimizer.state_dict())
    third.model.train()
    for planned in batches[1:]:
        for run in (first, third):
            run.take_step(*planned)
    first.method.end_epoch(first.context(1))
    third.method.end_epoch(third.context(1))
    assert_same_state(third.state()["model"], first.state()["model"])
    assert_same_state(third.state()["method"], first.state()["method"])


# Devices and types


@each_subject
def test_moved_after_setup_it_trains_in_the_new_type(subject):
    loop = make_loop(subject, dtype=torch.float32)
    loop.model.to("cpu", torch.float64)
    loop.method.to("cpu", torch.float64)
    loop.train = loop.train.to("cpu", dtype=torch.float64)
    for fresh, batch in kinds(loop):
        losses = compute(fresh, batch)
        fresh.method.adjust_gradients(fresh.model)
        assert all(value.dtype == torch.float64 for value in losses.terms.values())
        assert all(gradient.dtype == torch.float64 for gradient in gradients(fresh.model, fresh.method).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_combination
def test_on_a_gpu_it_computes_what_it_computes_on_the_cpu(subject, fusion, modalities):
    loop = make_loop(subject, modalities, fusion)
    for fresh, batch in kinds(loop):
        moved = copy.deepcopy(fresh)
        moved.model.cuda()
        moved.method.cuda()
        on_cpu, on_gpu = compute(fresh, batch), compute(moved, batch.to("cuda"))
        assert same({k: v.cpu() for k, v in on_gpu.terms.items()}, on_cpu.terms)
        on_host = {name: g.cpu() for name, g in gradients(moved.model, moved.method).items()}
        assert same(on_host, gradients(fresh.model, fresh.method))
        moved.method.adjust_gradients(moved.model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_subject
def test_whole_epochs_on_a_gpu(subject):
    loop = make_any_encoder_loop(subject)
    loop.model.cuda()
    loop.method.cuda()
    loop.train = loop.train.to("cuda")
    assert_trains(loop, 3, subject)


class Roundings(TorchDispatchMode):
    """Collects float64 tensors that are made single."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and (args[0].dtype, result.dtype) == (
            torch.float64,
            torch.float,
        ):
            self.found.append(args[0].shape)
        return result


@each_subject
def test_a_float64_step_is_float64_throughout(subject):
    for fresh, batch in kinds(make_loop(subject)):
        with Roundings() as roundings:
            compute(fresh, batch)
            fresh.method.adjust_gradients(fresh.model)
        assert not roundings.found, batch.tag


class CopiesThatWait(TorchDispatchMode):
    """Collects blocking copies between the host and a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            self.found += [] if kwargs.get("non_blocking", False) else [args[0].shape]
        return function(*args, **kwargs)


@each_subject
def test_a_step_waits_for_no_device(subject, monkeypatch):
    """On a device without numbers whatever reads one fails, and so does a tensor made of numbers of the host."""

    def encode(self, name, x, present=None):  # the encoders of some samples wait once, for how many there are
        return masked_features(self._run_encoder(name, x, len(x)), present)

    def made(make, is_on_device):
        def checked(*arguments, **options):
            assert not is_on_device(*arguments, **options)
            return make(*arguments, **options)

        return checked

    monkeypatch.setattr(bmlr.MultimodalClassifier, "encode", encode)
    monkeypatch.setattr(torch, "tensor", made(torch.tensor, lambda *_, device="cpu", **__: str(device) == "meta"))
    monkeypatch.setattr(torch.Tensor, "new_tensor", made(torch.Tensor.new_tensor, lambda like, *_, **__: like.is_meta))
    generator = SteppedMethod.generator
    # That of a GPU is made on the host; this device has none.
    on_host = lambda self, number, device="cpu": generator(self, number) if str(device) == "cpu" else None
    monkeypatch.setattr(SteppedMethod, "generator", on_host)
    loop = make_loop(subject, dtype=torch.float32)
    for present in (None, {"audio": torch.arange(18) % 3 != 0}):
        if present is not None and method_class(subject).needs_all_modalities:
            continue
        for fresh, batch in kinds(loop):
            fresh.model.to("meta")
            fresh.method.to("meta")
            moved = dataclasses.replace(batch, present=present).to("meta")
            with CopiesThatWait() as copies:
                compute(fresh, moved)
                fresh.method.adjust_gradients(fresh.model)
            assert not copies.found, batch.tag


class FloatsOfTwoWidths(TorchDispatchMode):
    """Collects operations in which floating-point tensors of two types meet."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.dtype for tensor in tensors if tensor.is_floating_point()}) > 1:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@each_subject
def test_all_state_of_a_float64_model_is_float64(subject):
    """State in single precision would round what a run in double precision computes, differently on each device."""
    loop = make_loop(subject)
    loop.run([0, 1])
    for name, value in loop.method.state_dict().items():
        assert not (value.is_floating_point() and value.numel()) or value.dtype == torch.float64, name
    for fresh, batch in kinds(loop):
        with FloatsOfTwoWidths() as meetings:
            compute(fresh, batch)
            fresh.method.adjust_gradients(fresh.model)
        assert not meetings.found, batch.tag


class NumbersOfTheHost(TorchDispatchMode):
    """Collects operations by which the host learns a number, or the size of a result that depends on numbers."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if reads_or_copies(function, args):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_no_number_on_the_host(name, monkeypatch):
    """What the host decides by a number, a graph of the step could not decide again."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # checks of targets are made on the CPU alone
    found = []
    for subject in SUBJECTS:
        if base(subject) == name:
            for fresh, batch in kinds(make_loop(subject)):
                with NumbersOfTheHost() as numbers:
                    compute(fresh, batch)
                    fresh.method.adjust_gradients(fresh.model)
                found += numbers.found
    assert bool(found) == bool(bmlr.methods.get(name).conformance.reads_host), found


@each_subject
def test_a_step_makes_no_generator(subject, monkeypatch):
    """One that is made within a step is allocated on the device, and no graph can capture it: the first one is kept."""
    made = []
    make = torch.Generator
    for fresh, batch in kinds(make_loop(subject)):
        for is_watched in (False, True):
            with monkeypatch.context() as patch:
                if is_watched:
                    patch.setattr(torch, "Generator", lambda *given: made.append(given) or make(*given))
                compute(fresh, batch)
                fresh.method.adjust_gradients(fresh.model)
        assert not made, batch.tag


# Gradients


@each_combination
def test_backward_is_linear_in_its_scale(subject, fusion, modalities):
    for fresh, batch in kinds(make_loop(subject, modalities, fusion)):
        scaled, by_tensor = copy.deepcopy(fresh), copy.deepcopy(fresh)
        compute(fresh, batch)
        compute(scaled, batch, scale=0.125)
        compute(by_tensor, batch, scale=torch.tensor(0.125))
        expected = {name: 0.125 * g for name, g in gradients(fresh.model, fresh.method).items()}
        assert same(gradients(scaled.model, scaled.method), expected)
        assert same(gradients(by_tensor.model, by_tensor.method), expected)


def halves_agree(subject, fusion, modalities):
    """For each kind of batch, whether its halves accumulate to its gradients."""
    for fresh, batch in kinds(make_loop(subject, modalities, fusion)):
        halves = copy.deepcopy(fresh)
        compute(fresh, batch)
        for rows in (torch.arange(9), torch.arange(9, 18)):
            compute(halves, dataclasses.replace(halves.take(rows), tag=batch.tag), scale=0.5)
        for run in (fresh, halves):
            run.method.adjust_gradients(run.model)
        yield same(gradients(fresh.model, fresh.method), gradients(halves.model, halves.method))


@pytest.mark.parametrize(
    ("subject", "fusion", "modalities"),
    with_fusions(pair for pair in COMBINATIONS if pair[0] not in NOT_MEAN_OVER_SAMPLES),
)
def test_accumulated_halves_give_the_gradients_of_the_batch(subject, fusion, modalities):
    assert all(halves_agree(subject, fusion, modalities))


@pytest.mark.parametrize("subject", NOT_MEAN_OVER_SAMPLES)
def test_what_is_said_to_be_no_mean_over_samples_is_none(subject):
    cases = [(fusion, modalities) for name, fusion in COMBINATIONS for modalities in (2, 3) if name == subject]
    assert not all(agree for case in cases for agree in halves_agree(subject, *case))


@each_subject
def test_gradients_can_be_clipped_after_the_method_adjusted_them(subject):
    for fresh, batch in kinds(make_loop(subject, dtype=torch.float32)):
        compute(fresh, batch)
        fresh.method.adjust_gradients(fresh.model)
        every = list(parameters(fresh.model, fresh.method).values())
        before = torch.nn.utils.clip_grad_norm_(every, 1e-3, error_if_nonfinite=True)
        assert before > 1e-3
        after = torch.stack([p.grad.norm() for p in every if p.grad is not None]).norm()
        assert float(after) == pytest.approx(1e-3, rel=1e-3)


# Evaluation


@each_subject_of_two_or_three
def test_evaluation_between_steps_leaves_no_trace(subject, modalities):
    def run(*, watched):
        loop = make_any_encoder_loop(subject, modalities)
        torch.manual_seed(0)
        step = loop.step

        def watched_step(batch):
            evaluate(loop.model, loop.method, [loop.train])
            step(batch)
            with torch.no_grad():
                loop.model.eval()
                loop.method.eval()
                loop.method.compute_losses(loop.model, loop.train)
                loop.model.train()
                loop.method.train()

        if watched:
            loop.step = watched_step
        loop.run(range(modalities))
        return loop.state()

    plain, watched = run(watched=False), run(watched=True)
    assert_same_state(watched["model"], plain["model"])
    assert_same_state(watched["method"], plain["method"])


# Parameters


def hints(name):
    """Type of each parameter of a method's constructor, None taken out."""
    types = get_type_hints(bmlr.methods.get(name).__init__)
    return {
        parameter: [t for t in (get_args(types[parameter]) or (types[parameter],)) if t is not type(None)]
        if get_origin(types[parameter]) is not Literal
        else [types[parameter]]
        for parameter in inspect.signature(bmlr.methods.get(name).__init__).parameters
        if parameter in types
    }


def bad_values():
    for name in METHODS:
        for parameter, types in hints(name).items():
            if float in types:
                yield from ((name, parameter, value) for value in (float("nan"), float("inf"), -1.0))
            elif int in types:
                yield from ((name, parameter, value) for value in (-1, 1.5))
            elif any(get_origin(t) is Literal for t in types):
                yield (name, parameter, "no such choice")


@pytest.mark.parametrize(("name", "parameter", "value"), list(bad_values()))
def test_bad_parameters_are_named(name, parameter, value):
    with pytest.raises(ValueError, match=rf"`{parameter}( = .*)?`"):
        bmlr.methods.create(name, **{parameter: value})


def test_every_method_is_a_class_of_its_own_with_parameters_read_back():
    for subject in SUBJECTS:
        method = make_method(subject)
        assert isinstance(method, Method)
        assert repr(method).startswith(base(subject) + "(")
        assert type(method)(**method.hparams).hparams == method.hparams
