"""Distillation from teachers of single modalities."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import G2D, UMT, EpochContext, Unimodal
from bmlr.tasks import Regression
from zoo import make_batch, make_model


def started(method, model):
    trained = {}
    for number, name in enumerate(model.modalities):
        network = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.5)
        single = Unimodal(name)
        single.setup(network)
        trained[name] = network, single
    method.setup(model)
    method.start_from(trained, model)
    return method.train(), trained


def teacher_features(trained, name, x):
    return trained[name][0].encoders[name].eval()(x).detach()


def teacher_logits(trained, name, x):
    head = trained[name][1].head
    return (teacher_features(trained, name, x) @ head.weight.T + head.bias).detach()


@pytest.mark.parametrize("modalities", [2, 3])
def test_umt_adds_the_distance_to_frozen_teachers_over_steps(modalities):
    model = make_model(modalities, dtype=torch.float64, batch_norm=True)
    method, trained = started(UMT(weight=3.0), model)
    before, twin = copy.deepcopy(method.teachers.state_dict()), copy.deepcopy(model).train()
    rates = {"lr": 0.1, "momentum": 0.9}
    first = torch.optim.SGD([*model.parameters(), *(p for p in method.parameters() if p.requires_grad)], **rates)
    second = torch.optim.SGD(twin.parameters(), **rates)
    for seed in range(3):
        present = {"video": torch.arange(9) % 3 > 0}
        batch = make_batch(modalities, 9, dtype=torch.float64, seed=seed, present=present)
        first.zero_grad(), second.zero_grad()
        losses = method.compute_losses(model.train(), batch)
        losses.total.backward()
        z = {u: twin.encode(u, x, present.get(u)) for u, x in batch.inputs.items()}
        expected = F.cross_entropy(twin.fusion(z), batch.targets)
        for u in model.modalities:
            rows = present.get(u, torch.ones(9, dtype=torch.bool))
            squares = (z[u][rows] - teacher_features(trained, u, batch.inputs[u][rows])) ** 2
            torch.testing.assert_close(losses.terms[u], 3 * squares.sum() / squares.numel())
            expected = expected + 3 * squares.mean()
        torch.testing.assert_close(losses.total, expected)
        expected.backward()
        first.step(), second.step()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    for name, value in method.teachers.state_dict().items():  # neither moved nor counted
        assert torch.equal(value, before[name])
    assert not any(module.training for module in method.teachers.modules())


def test_umt_without_weight_is_joint_training_and_serves_numbers_and_shared_encoders():
    model, batch = make_model(), make_batch()
    method, _ = started(UMT(weight=0.0), model)
    torch.testing.assert_close(
        method.compute_losses(model, batch).total, bmlr.methods.Joint().compute_losses(model, batch).total
    )
    with pytest.raises(RuntimeError, match=r"shows the inputs to its teachers: call `method.compute_losses\(model, b"):
        method(model(batch.inputs), batch.targets)
    shared = nn.Linear(4, 6)
    pair = bmlr.MultimodalClassifier({"left": shared, "right": shared}, Regression())
    method, trained = started(UMT(), pair)
    inputs = {"left": torch.randn(5, 4), "right": torch.randn(5, 4)}
    losses = method.compute_losses(pair, bmlr.Batch(inputs, torch.randn(5)))
    for name, x in inputs.items():  # each has a teacher of its own, although the encoder is one
        distance = F.mse_loss(shared(x), teacher_features(trained, name, x))
        torch.testing.assert_close(losses.terms[name], 10 * distance)


def context(model, epoch, epochs, val):
    no_training = lambda: pytest.fail("the training split is not read")
    return EpochContext(epoch, epochs, model, 9, no_training, lambda: [val])


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("ranking", ["validation", "batch"])
def test_g2d_distils_and_holds_the_strong_first(modalities, ranking):
    model = make_model(modalities, dtype=torch.float64)
    epochs = 2 * (modalities - 1)
    method, trained = started(
        G2D(temperature=2.0, logit_weight=0.5, feature_weight=3.0, prioritised_epochs=epochs, ranking=ranking), model
    )
    val = make_batch(modalities, 30, dtype=torch.float64, seed=9)
    batch = make_batch(modalities, 9, dtype=torch.float64)
    ranked = val if ranking == "validation" else batch

    def strength(u):
        probabilities = teacher_logits(trained, u, ranked.inputs[u]).softmax(1)
        return float(probabilities[torch.arange(len(ranked)), ranked.targets].mean())

    weakest_first = sorted(model.modalities, key=strength)
    for epoch in range(epochs + 1):
        method.start_epoch(context(model, epoch, 10, val))
        model.zero_grad()
        losses = method.compute_losses(model, batch)
        method.backward(losses, model)
        free = copy.deepcopy({name: p.grad for name, p in model.named_parameters()})
        method.adjust_gradients(model)
        learning = weakest_first[: 1 + epoch // 2] if epoch < epochs else weakest_first
        for name, p in model.named_parameters():
            part, _, rest = name.partition(".")
            is_held = part == "encoders" and rest.split(".")[0] not in learning and p.ndim > 1
            assert torch.equal(p.grad, torch.zeros_like(p) if is_held else free[name]), (epoch, name)
    z = {u: model.encoders[u](x) for u, x in batch.inputs.items()}
    fused = model.fusion(z)
    torch.testing.assert_close(losses.terms["fused"], F.cross_entropy(fused, batch.targets))
    for u, x in batch.inputs.items():
        p, q = (teacher_logits(trained, u, x) / 2).softmax(1), (fused / 2).softmax(1)
        torch.testing.assert_close(losses.terms[f"{u}_logits"], 0.5 * 4 * (p * (p.log() - q.log())).sum() / 9)
        torch.testing.assert_close(losses.terms[f"{u}_features"], 3 * F.mse_loss(z[u], teacher_features(trained, u, x)))


def test_g2d_holds_for_half_of_the_training_by_default_and_nothing_where_teachers_are_level():
    model, batch = make_model(), make_batch()
    method, _ = started(G2D(ranking="batch"), model)
    held = []
    for epoch in range(4):
        method.start_epoch(context(model, epoch, 4, batch))
        model.zero_grad()
        method.backward(method.compute_losses(model, batch), model)
        method.adjust_gradients(model)
        held.append(sum(not encoder[0].weight.grad.any() for encoder in model.encoders.values()))
    assert held == [1, 1, 0, 0]
    for head in method.teachers.heads.values():
        head.weight.data.zero_(), head.bias.data.zero_()
    method.start_epoch(context(model, 0, 4, batch))
    model.zero_grad()
    method.backward(method.compute_losses(model, batch), model)
    method.adjust_gradients(model)
    assert all(encoder[0].weight.grad.any() for encoder in model.encoders.values())
    other, _ = started(G2D(), make_model())
    with pytest.raises(ValueError, match="ranks its teachers on the validation split: give `val` a loader"):
        other.start_epoch(EpochContext(0, 4, model, 9, list, list))
    with pytest.raises(ValueError, match="since it distils probabilities of classes"):
        G2D().setup(bmlr.MultimodalClassifier({"a": nn.Linear(4, 6), "v": nn.Linear(4, 6)}, Regression()))


def test_teachers_are_in_the_state_of_a_training():
    model = make_model(dtype=torch.float64)
    method, _ = started(UMT(), model)
    other = UMT()
    other.setup(model)
    other.load_state_dict(method.state_dict())
    batch = make_batch(dtype=torch.float64)
    assert torch.equal(other.train().compute_losses(model, batch).total, method.compute_losses(model, batch).total)
