import copy
import math

import pytest
import torch
from torch import nn

import bmlr
from bmlr.methods import EpochContext, GBlend, UniformBaseline
from method_loop import MethodLoop, assert_any_order, assert_half_precision, assert_resumes, assert_same_state, take
from zoo import make_batch, make_model


def make_loop(modalities=2, present=None, max_epochs=4, **parameters):
    """A loop whose validation split is other data than its training split."""
    torch.manual_seed(0)
    model = make_model(modalities, dtype=torch.float64, batch_norm=True)
    whole = make_batch(modalities, 36, dtype=torch.float64, present=present)
    train, val = (take(whole, torch.arange(start, start + 18)) for start in (0, 18))
    loop = MethodLoop(model, GBlend(**{"super_epoch": 2, **parameters}), train, max_epochs=max_epochs)
    context = loop.context
    loop.context = lambda epoch: with_val(context(epoch), val)
    return loop


def with_val(context, val):
    context.val_batches = lambda: iter([val])
    return context


# A second version, from the specification: copies trained by themselves


def literal_weights(loop, epoch, epochs, rule):
    context, names = loop.context(epoch), sorted(loop.model.modalities)

    def logits(model, heads, batch, u):
        if u == "fused":
            return model(batch.inputs).logits
        return heads[u](model.encoders[u](batch.inputs[u]))

    def mean(model, heads, batches, u):
        model.eval()
        rows = [
            (-logits(model, heads, b, u).log_softmax(1)[i, y]).item()
            for b in batches
            for i, y in enumerate(b.targets.tolist())
        ]
        return sum(rows) / len(rows)

    weights = []
    for u in [*names, "fused"]:
        model, heads = copy.deepcopy((loop.model, loop.method.heads))
        start = [mean(model, heads, list(split()), u) for split in (context.train_batches, context.val_batches)]
        trained = model if u == "fused" else nn.ModuleList([model.encoders[u], heads[u]])
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
        model.train()
        for number in range(epochs):
            for batch in context.shuffled_batches(number):
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits(model, heads, batch, u), batch.targets).backward()
                optimizer.step()
        end = [mean(model, heads, list(split()), u) for split in (context.train_batches, context.val_batches)]
        gain, overfitting = start[1] - end[1], (end[1] - end[0]) - (start[1] - start[0])
        weights.append(
            {
                "paper": max(gain, 0) / overfitting**2,
                "balance_benchmark": abs(gain / overfitting**2),
                "multibench": end[1] / (end[1] - end[0] if end[1] > end[0] else 1e-4) ** 2,
            }[rule]
        )
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("rule", ["paper", "balance_benchmark", "multibench"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_weights_and_losses_agree_with_a_literal_version(modalities, rule):
    loop = make_loop(modalities, weights=rule)
    names = [*sorted(loop.model.modalities), "fused"]
    for epoch in range(4):
        if epoch % 2 == 0:
            expected = literal_weights(loop, epoch, 2, rule)
        plan = loop.method.start_epoch(loop.context(epoch))
        torch.testing.assert_close(
            loop.method.loss_weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0
        )
        for batch, _ in loop.batches(plan, epoch):
            losses = loop.method.compute_losses(loop.model, batch)
            loop.method.discard_losses()
            output = copy.deepcopy(loop.model)(batch.inputs)
            logits = {u: loop.method.heads[u](z) for u, z in output.features.items()} | {"fused": output.logits}
            for name, weight in zip(names, expected, strict=True):
                value = weight * nn.functional.cross_entropy(logits[name], batch.targets)
                torch.testing.assert_close(losses.terms[name], value, rtol=1e-7, atol=1e-12)
            assert {name: float(losses.logs[f"weight_{name}"]) for name in names} == pytest.approx(
                dict(zip(names, expected, strict=True))
            )
            loop.step(batch)


@pytest.mark.parametrize(
    ("rule", "losses", "weight"),
    [
        ("paper", (1.0, 1.0, 0.5, 0.8), 0.2 / 0.3**2),
        ("paper", (1.0, 1.0, 0.5, 1.2), 0.0),
        ("balance_benchmark", (1.0, 1.0, 0.5, 1.2), 0.2 / 0.7**2),
        ("multibench", (1.0, 1.0, 0.5, 0.8), 0.8 / 0.3**2),
        ("multibench", (1.0, 1.0, 0.5, 0.4), 0.4e8),
        ("paper", (1.0, 1.0, 0.8, 0.8), 0.2e8),
        ("paper", (1.0, 1.0, math.nan, math.nan), 0.0),
        ("balance_benchmark", (1.0, 1.0, math.inf, math.inf), 0.0),
    ],
)
def test_rules(rule, losses, weight):
    assert GBlend(weights=rule).weight(*losses) == pytest.approx(weight)


def test_where_nothing_generalises_weights_are_equal_and_it_is_the_uniform_baseline():
    loop = make_loop(super_epoch=1)
    loop.method.weight = lambda *_: 0.0
    torch.manual_seed(0)
    uniform = MethodLoop(make_model(dtype=torch.float64, batch_norm=True), UniformBaseline(1.0), loop.train)
    uniform.method.load_state_dict(
        {name: value for name, value in loop.method.state_dict().items() if name in uniform.method.state_dict()}
    )
    loop.method.start_epoch(loop.context(0))
    assert loop.method.loss_weights.tolist() == [1 / 3] * 3
    for batch, _ in loop.batches(bmlr.methods.EpochPlan(), 0):
        found, expected = (run.method.compute_losses(run.model, batch).total for run in (loop, uniform))
        torch.testing.assert_close(found, expected / 3)


@pytest.mark.parametrize(("mode", "found"), [("online", [0, 2]), ("offline", [0])])
def test_weights_are_found_once_or_every_super_epoch_for_the_epochs_that_are_left(mode, found):
    loop = make_loop(mode=mode, max_epochs=3)
    measured, rolled = [], []
    measure, roll_out = loop.method._measure, loop.method._roll_out
    loop.method._measure = lambda context: measured.append(context.epoch) or measure(context)

    def count(context, head):
        seen = loop.model.encoders["audio"].register_forward_hook(
            lambda module, *_: rolled.append((context.epoch, head)) if module.training else None
        )
        roll_out(context, head)
        seen.remove()

    loop.method._roll_out = count
    loop.run(range(3))
    assert measured == found
    batches = 2  # of 18 samples, 8 in one
    assert rolled.count((0, "audio")) == rolled.count((0, "fused")) == 2 * batches
    assert rolled.count((2, "audio")) == (batches if mode == "online" else 0)
    assert (0, "video") not in rolled  # the encoder of audio does not run for video


class Dropping(nn.Sequential):
    num_features = 5

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))


def test_roll_outs_leave_no_trace_and_draw_the_same_again():
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({"a": Dropping(), "v": Dropping()}, 3)
    data = [({u: torch.randn(6, 4) for u in "av"}, torch.arange(6) % 3) for _ in range(3)]
    model.freeze("v")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    balancer = bmlr.Balancer(model, GBlend(super_epoch=1), optimizer, max_epochs=3)
    model.train()
    for batch in balancer.epoch(data, data):
        balancer.step(batch)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    heads = copy.deepcopy(balancer.method.heads.state_dict())
    modes = [m.training for m in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    stream, weights = torch.get_rng_state(), []
    for _ in range(2):
        epoch = balancer.epoch(data, data)
        next(epoch)
        epoch.close()
        weights.append(balancer.method.loss_weights)
    assert torch.equal(*weights)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert_same_state(model.state_dict(), state[0])
    assert_same_state(balancer.method.heads.state_dict(), heads)
    for number, values in state[1]["state"].items():
        assert all(torch.equal(optimizer.state_dict()["state"][number][k], v) for k, v in values.items())
    assert not torch.equal(torch.full((3,), 1 / 3, dtype=torch.float64), weights[0])


def test_a_modality_that_validation_lacks_gets_no_weight_and_no_validation_is_an_error():
    loop = make_loop(3, present={"video": torch.arange(36) < 18}, weights="balance_benchmark")
    loop.method.start_epoch(loop.context(0))
    assert (loop.method.loss_weights > 0).tolist() == [True, True, False, True]
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = make_batch()
    with pytest.raises(ValueError, match=r"GBlend needs a validation split .* give bmlr.Balancer.epoch `val`"):
        list(bmlr.Balancer(model, GBlend(), optimizer, max_epochs=1).epoch([(batch.inputs, batch.targets)]))
    method = GBlend()
    method.setup(model)
    with pytest.raises(RuntimeError, match="give EpochContext .*let bmlr.Balancer run the loop"):
        method.start_epoch(EpochContext(0, 1, model))
    some = lambda: iter([batch])
    with pytest.raises(RuntimeError, match="give EpochContext `make_optimizer`, or let bmlr.Balancer"):
        method.start_epoch(EpochContext(0, 1, model, 8, some, some))


def test_it_resumes_exactly_in_any_order_and_in_half_precision():
    assert_resumes(lambda: GBlend(super_epoch=2), 2)
    assert_resumes(lambda: GBlend(super_epoch=1, mode="offline"), 3)
    assert_any_order(GBlend, ("audio", "video", "text"))
    assert_half_precision(GBlend, 3)
