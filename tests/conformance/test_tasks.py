"""Every method on every task: it trains, or refuses in one sentence."""

import copy
import dataclasses

import pytest
import torch
from subjects import SUBJECTS, base, compute, gradients, kinds, make_method, method_class, same, trained_modalities
from task_subjects import SUPPORTED, TASKS, make_loop, make_model, make_targets
from torch import nn

import bmlr
from bmlr.tasks import Multiclass, MultiLabel
from method_loop import MethodLoop, set_up
from zoo import INPUT_DIMS, make_batch

REFUSED = [(s, t) for s in SUBJECTS for t in ("multilabel", "sentiment") if (s, t) not in SUPPORTED]
#: Where gradients of halves are compared: weights of classes make a mean that is none over samples.
SPLITTABLE = [(s, t) for s, t in SUPPORTED if t != "options" and not method_class(s).conformance.not_mean_over_samples]
#: They choose by, or train, all parameters of a head, of which two classes have two for one of a label.
OF_WHOLE_HEADS = {"GBlend", "LFM:learnable", "LFMBalanceBenchmark"}


@pytest.mark.parametrize(("subject", "name"), SUPPORTED)
def test_training_moves_every_encoder(subject, name):
    loop = make_loop(subject, name, 3 if name == "multilabel" else 2, "own" if name == "sentiment" else "sum")
    before = copy.deepcopy(loop.model.encoders)
    loop.run(range(loop.max_epochs))
    trained = trained_modalities(subject, loop.model.modalities)
    for modality, encoder in loop.model.encoders.items():
        for parameter, old in zip(encoder.parameters(), before[modality].parameters(), strict=True):
            assert bool(torch.isfinite(parameter).all())
            assert torch.equal(parameter, old) == (modality not in trained)
    prediction = loop.method.predict(loop.model.eval()(loop.train.inputs))
    for logits in (prediction.logits, *prediction.unimodal_logits.values()):
        assert logits.shape == (18, TASKS[name].num_outputs)
        assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize(("subject", "name"), REFUSED)
def test_a_task_it_is_not_defined_for_is_refused_with_the_reason(subject, name):
    model, task = make_model(TASKS[name], 2), TASKS[name]
    message = (
        rf"^Method {base(subject)} is defined for .* tasks only, since .*\. Found {type(task).__name__}, a {task.name}"
    )
    with pytest.raises(ValueError, match=message):
        set_up(make_method(subject), model)
    with pytest.raises(ValueError, match=message):  # as a loss of one's own, without setup
        make_method(subject)(model(make_batch(2, 18, dtype=torch.float64).inputs), make_targets(name, 18))


@pytest.mark.parametrize(
    ("subject", "name"), [pair for pair in SUPPORTED if not method_class(pair[0]).needs_all_modalities]
)
def test_absent_modalities_give_finite_steps_and_leave_their_inputs_unread(subject, name):
    loop = make_loop(subject, name, 3)
    present = {"audio": torch.arange(18) % 3 != 0, "text": torch.zeros(18, dtype=torch.bool)}
    inputs = {
        u: x.masked_fill(~present.get(u, x[:, 0].bool())[:, None], torch.nan) for u, x in loop.train.inputs.items()
    }
    for fresh, batch in kinds(loop, dataclasses.replace(loop.train, inputs=inputs, present=present)):
        losses = compute(fresh, batch)
        assert all(bool(torch.isfinite(value)) for value in (*losses.terms.values(), *losses.logs.values()))
        fresh.method.adjust_gradients(fresh.model)
        assert all(bool(torch.isfinite(g).all()) for g in gradients(fresh.model, fresh.method).values())


@pytest.mark.parametrize(("subject", "name"), SPLITTABLE)
def test_accumulated_halves_give_the_gradients_of_the_batch(subject, name):
    for fresh, batch in kinds(make_loop(subject, name)):
        halves = copy.deepcopy(fresh)
        compute(fresh, batch)
        for rows in (torch.arange(9), torch.arange(9, 18)):
            compute(halves, dataclasses.replace(halves.take(rows), tag=batch.tag), scale=0.5)
        for run in (fresh, halves):
            run.method.adjust_gradients(run.model)
        assert same(gradients(fresh.model, fresh.method), gradients(halves.model, halves.method))


@pytest.mark.parametrize(("subject", "name"), [pair for pair in SUPPORTED if pair[1] in {"options", "sentiment"}])
def test_targets_of_another_task_are_named(subject, name):
    loop = make_loop(subject, name)
    wrong, message = {
        "options": (make_targets("sentiment", 18), "`targets` should be class indices"),
        "sentiment": (torch.full((18,), torch.nan), "`targets` should be finite numbers"),
    }[name]
    for fresh, batch in kinds(loop):
        with pytest.raises(ValueError, match=message):
            fresh.method.compute_losses(fresh.model, dataclasses.replace(batch, targets=wrong))


def two_classes(loop, subject):
    """The same model and method with the classes absent and there, of which the first has the logit zero."""
    model = make_model(Multiclass(2), len(loop.model.modalities))
    other = MethodLoop(model, make_method(subject), dataclasses.replace(loop.train, targets=loop.train.targets[:, 0]))
    for one, two in ((loop.model, other.model), (loop.method, other.method)):
        state = two.state_dict()
        for name, value in one.state_dict().items():
            is_head = value.shape != state[name].shape
            state[name] = torch.cat([torch.zeros_like(value), value]) if is_head else value
        two.load_state_dict(state)
    return other


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    "subject", [s for s in SUBJECTS if "multilabel" in method_class(s).tasks and s not in OF_WHOLE_HEADS]
)
def test_one_label_is_two_classes(subject, modalities):
    model = make_model(MultiLabel(1), modalities)
    targets = make_targets("multilabel", 18)[:, :1]
    batch = dataclasses.replace(make_batch(modalities, 18, dtype=torch.float64), targets=targets)
    loop = MethodLoop(model, make_method(subject), batch, max_epochs=modalities)
    other = two_classes(loop, subject)
    other.max_epochs = modalities
    for (one, first), (two, second) in zip(kinds(loop), kinds(other), strict=True):
        losses, expected = compute(one, first), compute(two, second)
        assert same(losses.terms, expected.terms)
        assert same(losses.logs, expected.logs)
        found, wanted = ({k: g for k, g in gradients(r.model, r.method).items() if "encoders" in k} for r in (one, two))
        assert same(found, wanted)


class Net(nn.Module):
    """A model somebody has already."""

    def __init__(self, outputs):
        super().__init__()
        self.ear, self.eye = nn.Linear(4, 5), nn.Linear(6, 5)
        self.classifier = nn.Sequential(nn.Tanh(), nn.Linear(10, outputs))

    def forward(self, audio, video):
        return {"logits": self.classifier(torch.cat([self.ear(audio), self.eye(video)], 1))}


@pytest.mark.parametrize(("subject", "name"), [(s, t) for s, t in SUPPORTED if t in {"multilabel", "sentiment"}])
def test_a_wrapped_model_is_trained(subject, name):
    torch.manual_seed(0)
    batch = dataclasses.replace(make_batch(2, 18), targets=make_targets(name, 18).float())
    net = Net(INPUT_DIMS["audio"] if name == "multilabel" else 1)
    model = bmlr.wrap(net, {"audio": "ear", "video": "eye"}, batch.inputs, task=TASKS[name])
    loop = MethodLoop(model, make_method(subject), batch, max_epochs=2)
    before = copy.deepcopy(net)  # with the weights of runs the method starts from
    loop.run([0, 1])
    trained = trained_modalities(subject, model.modalities)
    assert torch.equal(net.ear.weight, before.ear.weight) == ("audio" not in trained)
    assert torch.equal(net.eye.weight, before.eye.weight) == ("video" not in trained)
    assert bool(torch.isfinite(net.ear.weight).all())
