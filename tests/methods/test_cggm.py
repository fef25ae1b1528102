import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import CGGM
from zoo import make_batch, make_model


def set_up(modalities, fusion="concat", **parameters):
    torch.manual_seed(0)
    model, method = make_model(modalities, fusion, dtype=torch.float64), CGGM(**parameters)
    method.setup(model)
    return model, method


def cosine(first, second):
    """Cosine of two vectors in plain Python, a number that can be differentiated."""
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / (sum(a * a for a in first).sqrt() * sum(b * b for b in second).sqrt())


def literal_cosines(model, method, batch, output, fused):
    """Of gradients at the features, sample by sample, or of weights."""
    cosines, end = {}, 0
    for u, z in output.features.items():
        if method.direction == "weights":
            start, end = end, end + z.shape[1]
            weight = model.fusion.linear.weight[:, start:end]
            cosines[u] = cosine(weight.flatten(), method.heads[u].weight.detach().flatten())
            continue
        (of_fused,) = torch.autograd.grad(fused, z, create_graph=True)
        rows = []
        for i in range(len(batch)):
            own = z[i].detach().requires_grad_()
            loss = F.cross_entropy(method.heads[u](own)[None], batch.targets[i : i + 1])
            (of_head,) = torch.autograd.grad(loss, own)
            rows.append(cosine(of_fused[i], of_head))
        cosines[u] = sum(rows) / len(rows)
    return cosines


def literal_accuracies(method, batch, output):
    answers = {u: method.heads[u](z).argmax(1).tolist() for u, z in output.features.items()}
    return {u: sum(a == int(y) for a, y in zip(x, batch.targets, strict=True)) / len(batch) for u, x in answers.items()}


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    ("parameters", "fusion"),
    [
        ({}, "concat"),
        ({"weight": 1.0, "clamp": None}, "film"),
        ({"direction": "weights", "weight": 1.0, "rho": 2.0}, "concat"),
    ],
)
def test_losses_and_gradients_over_several_steps_are_those_of_the_formula(modalities, parameters, fusion):
    model, method = set_up(modalities, fusion, **parameters)
    named = {**dict(model.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    optimizer = torch.optim.SGD(named.values(), lr=0.05)
    accuracies, coefficients = dict.fromkeys(model.modalities, 0.0), dict.fromkeys(model.modalities, 1.0)
    for number in range(4):
        batch = make_batch(modalities, 16, dtype=torch.float64, seed=number)
        output = model(batch.inputs)
        fused = F.cross_entropy(output.logits, batch.targets)
        heads = {u: F.cross_entropy(method.heads[u](z.detach()), batch.targets) for u, z in output.features.items()}
        cosines = literal_cosines(model, method, batch, output, fused)
        shares = [abs(coefficients[u]) - coefficients[u] * cosines[u] for u in cosines]
        direction = method.weight * sum(shares) / len(shares)
        expected = dict(
            zip(named, torch.autograd.grad(fused + direction + sum(heads.values()), list(named.values())), strict=True)
        )
        scored = literal_accuracies(method, batch, output)
        changes = {u: scored[u] - accuracies[u] for u in scored}
        total = sum(changes.values()) + 1e-8
        coefficients = {u: (total - change) / total for u, change in changes.items()}
        if method.clamp is not None:
            coefficients = {u: min(max(b, 0.0), method.clamp) for u, b in coefficients.items()}
        accuracies = scored

        optimizer.zero_grad()
        losses = method(model(batch.inputs), batch.targets)
        torch.testing.assert_close(losses.terms["direction"], direction)
        for u, loss in heads.items():
            torch.testing.assert_close(losses.terms[u], loss)
        method.backward(losses, model)
        method.adjust_gradients(model)
        assert dict(zip(sorted(coefficients), method.coefficients.tolist(), strict=True)) == pytest.approx(coefficients)
        for name, p in named.items():
            factor = method.rho * coefficients[name.split(".")[1]] if name.startswith("encoders.") else 1.0
            torch.testing.assert_close(p.grad, factor * expected[name], rtol=1e-7, atol=1e-10)
        optimizer.step()


def test_heads_watch_and_do_not_steer():
    """Without the direction loss the encoders' gradients are multiples of the joint ones."""
    model, method = set_up(2, weight=0.0)
    batch = make_batch(2, dtype=torch.float64)
    losses = method(model(batch.inputs), batch.targets)
    assert set(losses.terms) == {"fused", "audio", "video"}
    method.backward(losses, model)
    heads = [p.grad for p in method.heads.parameters()]
    assert all(bool(g.any()) for g in heads)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    plain = torch.autograd.grad(F.cross_entropy(model(batch.inputs).logits, batch.targets), list(model.parameters()))
    for (name, gradient), expected in zip(before.items(), plain, strict=True):
        torch.testing.assert_close(gradient, expected, msg=name)


def test_the_clamp_keeps_an_encoder_from_climbing_its_loss():
    """Changes of +0.125 and −0.125 add up to nothing."""
    for clamp, expected in ((2.0, [0.0, 2.0]), (None, [-0.125e8, 0.125e8])):
        model, method = set_up(2, clamp=clamp)
        method.accuracies = torch.tensor([0.25, 0.5], dtype=torch.float64)
        method.add_sums(torch.tensor([[3.0, 3.0], [8.0, 8.0]], dtype=torch.float64))
        method.change_gradients(model)
        assert method.coefficients.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_modality_nobody_has_changes_nothing():
    model, method = set_up(2)
    absent = torch.zeros(8, dtype=torch.bool)
    batch = make_batch(2, dtype=torch.float64, present={"video": absent})
    method.backward(method(model(batch.inputs, batch.present), batch.targets), model)
    method.adjust_gradients(model)
    assert float(method.accuracies[1]) == 0.0
    assert all(math.isfinite(x) for x in method.coefficients.tolist())


def test_errors_of_numbers_are_accuracies_with_a_minus():
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 5) for u in ("audio", "video")}, bmlr.tasks.Regression())
    method = CGGM(clamp=None)
    method.setup(model)
    method.accuracies = torch.tensor([-2.0, -2.0])
    method.add_sums(torch.tensor([[4.0, 6.0], [4.0, 4.0]]))
    method.change_gradients(model)
    assert method.accuracies.tolist() == [-1.0, -1.5]  # better by 1 and by 0.5
    assert method.coefficients.tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-6)


def test_weights_need_a_fusion_that_has_them():
    for fusion in ("concat", "sum"):
        CGGM(direction="weights").setup(make_model(2, fusion))
    with pytest.raises(ValueError, match="Found FiLMFusion, which has none: choose concat, sum or the direction"):
        CGGM(direction="weights").setup(make_model(2, "film"))
    with pytest.raises(RuntimeError, match="CGGM was not set up for this model"):
        CGGM()(make_model(2)(make_batch(2).inputs), make_batch(2).targets)
