import itertools
import math

import pytest
import torch
from torch import nn

import bmlr
from bmlr.methods import Joint, TCMax
from bmlr.tasks import Multiclass, MultiLabel
from zoo import make_batch, make_encoder, make_model


def tuples_of(output):
    """Rows of all tuples, by sorted name."""
    return list(itertools.product(range(output.batch_size), repeat=len(output.features)))


def literal(output, targets, tuples):
    """The loss as it is written: one fusion forward per tuple, one exponential per tuple and class."""
    names = sorted(output.features)
    exponentials = []
    for rows in tuples:
        mixed = {name: output.features[name][row : row + 1] for name, row in zip(names, rows, strict=True)}
        logits = output.fusion({name: mixed[name] for name in output.features})[0]
        exponentials += [logits[c].exp() for c in range(len(logits))]
    positives = [output.logits[i, y] for i, y in enumerate(targets.tolist())]
    return -sum(positives) / len(positives) + (sum(exponentials) / len(tuples)).log()


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def assert_same_loss(method, output, model, targets, tuples):
    loss, expected = method(output, targets).total, literal(output, targets, tuples)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "own"])
def test_agrees_with_all_tuples_one_after_another(fusion, modalities):
    model = make_model(modalities, fusion, dtype=torch.float64)
    present = {"video": torch.tensor([True, True, False, True, False])}
    for presence in (None, present):
        batch = make_batch(modalities, 5, dtype=torch.float64, present=presence)
        output = model(batch.inputs, batch.present)
        assert_same_loss(TCMax(), output, model, batch.targets, tuples_of(output))


def test_differs_from_the_official_code_by_a_constant_where_that_does_not_overflow():
    model, batch = make_model(dtype=torch.float64), make_batch(batch_size=6, dtype=torch.float64)
    output, size = model(batch.inputs), 6
    terms = output.fusion.split(output.features)
    matrix = terms["audio"][:, None] + terms["video"][None]

    def official(matrix):
        shares = (matrix - matrix.mean()).exp()
        shares = shares / shares.sum()
        rows = torch.arange(size)
        return -shares[rows, rows, batch.targets].log().mean() - math.log(size)

    loss = TCMax()(output, batch.targets).total
    torch.testing.assert_close(loss, official(matrix) - math.log(size), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        model.fusion.linear.weight.mul_(1e4)
    assert not official(model.fusion(output.features)[:, None] + torch.zeros_like(matrix)).isfinite()
    assert TCMax()(model(batch.inputs), batch.targets).total.isfinite()


def test_a_batch_of_one_sample_has_the_joint_loss():
    model, batch = make_model(3, dtype=torch.float64), make_batch(3, 1, dtype=torch.float64)
    output = model(batch.inputs)
    losses = TCMax()(output, batch.targets)
    torch.testing.assert_close(losses.total, Joint()(output, batch.targets).total)
    assert losses.terms["alignment"].abs().item() < 1e-12


@pytest.mark.parametrize(("samples", "fusion"), [(7, "concat"), (0, "film"), (0, "sum")])
def test_drawn_tuples(samples, fusion):
    model, batch = make_model(3, fusion, dtype=torch.float64), make_batch(3, 6, dtype=torch.float64)
    method, output = TCMax(samples=samples, seed=3), model(batch.inputs)
    rows = method._tuples(output, 3, None)[0]
    assert rows.shape == (samples or 6, 3)
    if not samples:
        assert rows[:, 0].tolist() == list(range(6))
        assert all(sorted(column.tolist()) == list(range(6)) for column in rows.unbind(1))
    assert_same_loss(method, output, model, batch.targets, rows.tolist())
    assert not torch.equal(method._tuples(output, 3, None)[0], rows)  # the step has passed
    method.step = 0
    method.eval()(output, batch.targets)
    assert torch.equal(method._tuples(output, 3, None)[0], rows)


def test_beyond_the_largest_number_of_tuples_as_many_are_drawn():
    model, batch = make_model(2, "film"), make_batch(2, 70)
    rows, mask = TCMax()._tuples(model(batch.inputs), 2, None)
    assert rows.shape == (4096, 2)
    assert mask is None
    assert sorted(set(rows.flatten().tolist())) == list(range(70))


def make_task_model(task, fusion="concat"):
    torch.manual_seed(0)
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    return bmlr.MultimodalClassifier(encoders, task, fusion).double()


@pytest.mark.parametrize(("samples", "fusion"), [(None, "concat"), (None, "gated"), (0, "concat"), (50, "concat")])
def test_samples_without_a_target_are_in_no_tuple(samples, fusion):
    model = make_task_model(Multiclass(3, ignore_index=-100), fusion)
    batch = make_batch(2, 8, dtype=torch.float64)
    has_target = torch.tensor([False, True, True, False, True, True, False, True])
    targets = batch.targets.masked_fill(~has_target, -100)
    whole = model(batch.inputs)
    method = TCMax(samples=samples)
    rows, mask = method._tuples(whole, 2, has_target)
    rows = rows if mask is None else rows[mask]
    assert set(rows.flatten().tolist()) == set(has_target.nonzero().flatten().tolist())
    part = model({name: x[has_target] for name, x in batch.inputs.items()})
    position = has_target.cumsum(0) - 1
    expected = literal(part, targets[has_target], position[rows].tolist())
    torch.testing.assert_close(method(whole, targets).total, expected, rtol=1e-12, atol=1e-12)
    nothing = method(whole, torch.full_like(targets, -100)).total
    assert nothing.item() == 0
    assert all(not g.any() for g in gradients(model, nothing))


def test_each_label_is_a_choice_of_its_own():
    model = make_task_model(MultiLabel(2))
    batch = make_batch(2, 4, dtype=torch.float64)
    targets = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    output = model(batch.inputs)
    f = {name: values.tolist() for name, values in output.fusion.split(output.features).items()}
    expected = 0.0
    for k in range(2):
        total = sum(1 + math.exp(f["audio"][i][k] + f["video"][j][k]) for i in range(4) for j in range(4))
        positives = sum((f["audio"][i][k] + f["video"][i][k]) * targets[i, k].item() for i in range(4))
        expected += (math.log(total / 16) - positives / 4) / 2
    assert TCMax()(output, targets).total.item() == pytest.approx(expected)


def test_the_alignment_trains_an_encoder_whose_logits_cannot_lower_the_cross_entropy():
    """What joint training lacks: with logits that are the same for all classes, only the alignment has a gradient."""
    model, batch = make_model(dtype=torch.float64), make_batch(dtype=torch.float64)
    with torch.no_grad():
        model.fusion.linear.weight.copy_(model.fusion.linear.weight.mean(0, keepdim=True).expand(3, -1))
    weight = nn.Module.get_parameter(model, "encoders.audio.0.weight")
    terms = TCMax()(model(batch.inputs), batch.targets).terms
    assert torch.autograd.grad(terms["fused"], weight, retain_graph=True)[0].abs().max() < 1e-12
    assert torch.autograd.grad(terms["alignment"], weight)[0].abs().max() > 1e-4


@pytest.mark.parametrize(("parameters", "name"), [({"samples": -1}, "samples"), ({"seed": 0.5}, "seed")])
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        TCMax(**parameters)
