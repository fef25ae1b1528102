import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import bmlr
from bmlr.methods import MLA, EpochContext
from method_loop import MethodLoop
from zoo import INPUT_DIMS, MODALITIES, make_batch, make_model

LR, MOMENTUM, SIZE = 0.1, 0.9, 6


def linear_model(modalities=2, task=3):
    torch.manual_seed(0)
    encoders = {name: nn.Linear(INPUT_DIMS[name], 5) for name in MODALITIES[:modalities]}
    return bmlr.MultimodalClassifier(encoders, task).double()


def set_up(method, model):
    method.setup(model)
    return method


def started(method, model, num_train=24):
    """The method within its first epoch, with its gradient of the first step behind it."""
    set_up(method, model).start_epoch(EpochContext(0, 2, model, num_train))
    method.step = 1
    return method


def softmax(logits):
    values = np.exp(logits - logits.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def literal(model, method, batches, *, projection):
    """The official loop in NumPy.

    All modalities have one forward pass, and take a step each, which for the others only moves the head. Returns the
    weights by name, and P.
    """
    weights = {name: p.detach().numpy().copy() for name, p in (*model.named_parameters(), *method.named_parameters())}
    velocity, projector, steps = {}, np.eye(5), 0
    for number, (inputs, targets) in enumerate(batches):
        x = {u: values.numpy() for u, values in inputs.items()}
        z = {u: values @ weights[f"encoders.{u}.weight"].T + weights[f"encoders.{u}.bias"] for u, values in x.items()}
        for u, values in x.items():
            wrong = softmax(z[u] @ weights["head.weight"].T + weights["head.bias"])
            wrong[np.arange(len(targets)), targets.numpy()] -= 1
            wrong /= len(targets)
            back = wrong @ weights["head.weight"]
            head = wrong.T @ z[u]
            if projection and steps:
                r = z[u].mean(0)[:, None]
                k = projector @ r
                projector = projector - k @ k.T / (0.1 ** (1 + number / len(batches)) + (r.T @ k).item())
                projector = projector / math.sqrt((projector**2).sum())
                head = head @ projector.T
            steps += 1
            gradients = {
                "head.weight": head, "head.bias": wrong.sum(0),
                f"encoders.{u}.weight": back.T @ values, f"encoders.{u}.bias": back.sum(0),
            }  # fmt: skip
            for name, gradient in gradients.items():
                velocity[name] = MOMENTUM * velocity[name] + gradient if name in velocity else gradient
                weights[name] = weights[name] - LR * velocity[name]
    return weights, projector


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("modalities", [2, 3])
def test_an_epoch_is_that_of_the_official_order_step_by_step(modalities, projection):
    whole = make_batch(modalities, 4 * SIZE, dtype=torch.float64)
    samples = [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in range(4 * SIZE)]
    model, method = linear_model(modalities), MLA(projection=projection)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    balancer = bmlr.Balancer(model, method, optimizer, max_epochs=1)
    expected, projector = literal(model, method, list(DataLoader(samples, SIZE)), projection=projection)
    fusion = {name: p.detach().clone() for name, p in model.fusion.named_parameters()}
    for batch in balancer.epoch(DataLoader(samples, SIZE)):
        optimizer.zero_grad(set_to_none=False)
        balancer.step(batch)
    assert balancer.steps == 4 * modalities
    trained = dict((*model.named_parameters(), *method.named_parameters()))
    for name, values in expected.items():
        np.testing.assert_allclose(trained[name].detach().numpy(), values, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(p, fusion[name]) for name, p in model.fusion.named_parameters())
    if projection:
        np.testing.assert_allclose(method.projector.numpy(), projector, rtol=1e-9, atol=1e-12)
    else:
        assert method.projector is None


def test_a_modality_rests_in_the_step_of_another_even_with_zeroed_gradients():
    loop = MethodLoop(linear_model(), MLA(projection=False), make_batch(2, 12, dtype=torch.float64))
    loop.step(loop.take(torch.arange(12), "modality:audio"))
    before = loop.model.encoders["audio"].weight.detach().clone()
    loop.optimizer.zero_grad(set_to_none=False)
    losses = loop.method.compute_losses(loop.model, loop.take(torch.arange(12), "modality:video"))
    loop.method.backward(losses, loop.model)
    loop.method.adjust_gradients(loop.model)
    loop.optimizer.step()
    assert torch.equal(loop.model.encoders["audio"].weight, before)
    assert list(losses.terms) == ["video"]


def projected(method, model, batches, scale):
    model.zero_grad()
    method.zero_grad()
    for batch in batches:
        method.backward(method.compute_losses(model, batch), model, scale=scale)
    method.adjust_gradients(model)
    return method.head.weight.grad


def test_the_projection_sees_all_samples_of_a_step_that_count_and_follows_the_epoch():
    model, whole = linear_model(), make_batch(2, 24, dtype=torch.float64)
    mask = torch.arange(24) % 12 % 3 > 0
    whole.present, whole.tag = {"video": mask}, "modality:video"
    take = lambda rows: MethodLoop(model, MLA(), whole).take(rows, whole.tag)
    one, two = started(MLA(), model), started(MLA(), model)
    two.load_state_dict(one.state_dict())
    expected = projected(one, model, [whole], 1.0)
    halves = projected(two, model, [take(torch.arange(12)), take(torch.arange(12, 24))], 0.5)
    torch.testing.assert_close(halves, expected)
    torch.testing.assert_close(one.projector, two.projector)
    mean = model.encode("video", whole.inputs["video"], mask)[mask].mean(0).detach()
    matrix = torch.eye(5).double() - torch.outer(mean, mean) / (0.1 + mean @ mean)
    torch.testing.assert_close(one.projector, matrix / matrix.norm())
    before = one.projector
    projected(one, model, [whole], 1.0)  # a whole epoch is seen: α is 0.01
    gain = before @ mean
    matrix = before - torch.outer(gain, gain) / (0.01 + mean @ gain)
    torch.testing.assert_close(one.projector, matrix / matrix.norm())
    nobody = take(torch.arange(0, 24, 3))  # none of them has video
    gradient = projected(one, model, [nobody], 1.0)
    assert not bool(gradient.any())
    torch.testing.assert_close(one.projector, matrix / matrix.norm())


def test_an_unknown_number_of_samples_is_that_of_the_epoch_before():
    model = linear_model()
    balancer = bmlr.Balancer(model, MLA(), torch.optim.SGD(model.parameters(), LR), max_epochs=2)
    batch = make_batch(2, 6, dtype=torch.float64)
    for known in (0, 12):
        for tagged in balancer.epoch([(batch.inputs, batch.targets)] * 2):
            balancer.step(tagged)
            assert balancer.method.num_train == known
        assert balancer.method.seen.tolist() == [12, 12]


def test_large_features_leave_the_projection_finite():
    model = linear_model().float()
    method = started(MLA(), model)
    batch = make_batch(2, 12)
    for step in range(200):
        batch.inputs["audio"] = 1e4 * torch.randn(12, 4, generator=torch.Generator().manual_seed(step % 3))
        batch.tag = "modality:audio"
        assert bool(torch.isfinite(projected(method, model, [batch], 1.0)).all())
    assert float(method.projector.norm()) == pytest.approx(1)


@pytest.mark.parametrize("modalities", [2, 3])
def test_certain_modalities_weigh_more_and_absent_ones_nothing(modalities):
    model, batch = linear_model(modalities), make_batch(modalities, 5, dtype=torch.float64)
    method = set_up(MLA(), model)
    mask = torch.tensor([True, True, False, True, False])
    prediction = method.predict(model(batch.inputs, {"video": mask}))
    for i in range(5):
        names = [u for u in model.modalities if u != "video" or mask[i]]
        p = {u: softmax(prediction.unimodal_logits[u][i].detach().numpy()) for u in names}
        entropy = {u: -sum(value * math.log(value) for value in p[u]) for u in names}
        raw = {u: math.exp(max(entropy.values()) - entropy[u]) for u in names}
        for c in range(3):
            fused = sum(raw[u] / sum(raw.values()) * prediction.unimodal_logits[u][i, c].item() for u in names)
            assert prediction.logits[i, c].item() == pytest.approx(fused)


def test_fixed_weights_are_equal_or_given_and_shared_by_the_modalities_present():
    model, batch = linear_model(), make_batch(2, 2, dtype=torch.float64)
    present = {"video": torch.tensor([True, False])}
    for method, share in ((MLA(weighting="fixed"), 0.5), (MLA(weights={"audio": 1.1, "video": 0.9}), 0.55)):
        prediction = set_up(method, model).predict(model(batch.inputs, present))
        audio, video = prediction.unimodal_logits["audio"], prediction.unimodal_logits["video"]
        expected = share * audio[0] + (1 - share) * video[0]
        torch.testing.assert_close(prediction.logits[0], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(prediction.logits[1], audio[1])


def test_numbers_are_averaged_and_have_no_entropy():
    task = bmlr.tasks.Regression(2)
    model, batch = linear_model(task=task), make_batch(2, 4, dtype=torch.float64)
    prediction = set_up(MLA(), model).predict(model(batch.inputs))
    torch.testing.assert_close(prediction.logits, torch.stack(list(prediction.unimodal_logits.values())).mean(0))
    with pytest.raises(ValueError, match="`weighting` should be 'fixed' for a regression task"):
        MLA(weighting="entropy").setup(model)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"equal widths. Found 7 of 'audio', 5 of 'video'. Give encoders .*`width`"):
        MLA().setup(make_model())
    with pytest.raises(ValueError, match=r"`weights` should have a number for each of audio, video. Found {'audio': 1"):
        MLA(weights={"audio": 1.0}).setup(linear_model())
    with pytest.raises(ValueError, match=r"`weights.video` should be a positive finite number"):
        MLA(weights={"audio": 1.0, "video": 0.0})
    with pytest.raises(ValueError, match="`weighting` should be 'fixed' where `weights` are given"):
        MLA(weighting="entropy", weights={"audio": 1.0})
    with pytest.raises(RuntimeError, match=r"MLA has no head for 'audio': call `method.setup\(model\)`"):
        MLA().predict(linear_model()(make_batch(dtype=torch.float64).inputs))
