import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from bmlr.methods import MLB
from bmlr.tasks import Multiclass, Regression
from zoo import make_batch, make_model


def literal_coefficient(scores, u, alpha, beta):
    """k of one modality in plain Python."""
    others = [score for v, score in scores.items() if v != u]
    ratio = sum(others) / len(others) / scores[u]
    change = math.tanh(alpha * (ratio - 1))
    return 1 + (beta - 1) * change if ratio > 1 else 1 + change


def set_up(modalities, fusion="concat", **parameters):
    model, method = make_model(modalities, fusion, dtype=torch.float64), MLB(**parameters)
    method.setup(model)
    return model, method


def plain_gradients(model, method, batch):
    """Scores, and gradients of the sum of the losses, without the method."""
    output = model(batch.inputs)
    logits = {u: method.heads[u](z) for u, z in output.features.items()}
    total = F.cross_entropy(output.logits, batch.targets)
    total = total + sum(F.cross_entropy(x, batch.targets) for x in logits.values())
    named = {**dict(model.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    gradients = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    scores = {
        u: sum(float(row.softmax(0)[y]) for row, y in zip(x.detach(), batch.targets, strict=True)) / len(batch)
        for u, x in logits.items()
    }
    return scores, gradients


def own_columns(model, fusion):
    """Parameter of the fusion and columns of it that read each modality alone."""
    if fusion == "sum":
        return {u: (f"fusion.heads.{u}.weight", slice(None)) for u in model.modalities}
    if fusion == "concat":
        ends, places = 0, {}
        for u, width in model.fusion.feature_dims.items():
            places[u] = ("fusion.linear.weight", slice(ends, ends + width))
            ends += width
        return places
    return {}


@pytest.mark.parametrize("fusion", ["concat", "sum", "film"])
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 10.0), (2.0, 0.5)])
def test_gradients_over_several_steps_are_those_of_the_formula(modalities, fusion, alpha, beta):
    model, method = set_up(modalities, fusion, alpha=alpha, beta=beta)
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.2)
    for number in range(3):
        batch = make_batch(modalities, 8, dtype=torch.float64, seed=number)
        scores, expected = plain_gradients(model, method, batch)
        coefficients = {u: literal_coefficient(scores, u, alpha, beta) for u in scores}
        assert max(abs(k - 1) for k in coefficients.values()) > 0.01
        for name in expected:
            if name.startswith("encoders."):
                expected[name] = coefficients[name.split(".")[1]] * expected[name]
        for u, (name, columns) in own_columns(model, fusion).items():
            expected[name][:, columns] *= coefficients[u]
        optimizer.zero_grad()
        losses = method(model(batch.inputs), batch.targets)
        for u, score in scores.items():
            assert float(losses.logs[f"score_{u}"]) == pytest.approx(score)
        method.backward(losses, model)
        method.adjust_gradients(model)
        for name, p in (*model.named_parameters(), *((f"method.{n}", p) for n, p in method.named_parameters())):
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
        optimizer.step()


def test_a_neutral_strength_is_training_with_unimodal_losses():
    model, method = set_up(3, alpha=0.0)
    batch = make_batch(3, dtype=torch.float64)
    _, expected = plain_gradients(model, method, batch)
    method.backward(method(model(batch.inputs), batch.targets), model)
    method.adjust_gradients(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_errors_are_compared_the_other_way_round():
    scores = torch.tensor([4.0, 1.0], dtype=torch.float64)
    ahead, behind = 1 + math.tanh(0.5 * (1 / 4 - 1)), 1 + (10 - 1) * math.tanh(0.5 * (4 - 1))
    method = MLB(beta=10.0)
    assert method.coefficients(scores, Multiclass(3)).tolist() == pytest.approx([ahead, behind])
    assert method.coefficients(scores, Regression()).tolist() == pytest.approx([behind, ahead])
    assert method.coefficients(torch.zeros(2), Multiclass(3)).tolist() == [1.0, 1.0]
    assert method.coefficients(torch.tensor([1.0, 0.0]), Multiclass(3)).tolist() == pytest.approx(
        [1 + math.tanh(-0.5), 10.0]
    )


def test_a_score_is_the_mean_of_the_samples_that_have_the_modality():
    model, method = set_up(2)
    present = torch.tensor([True] * 2 + [False] * 6)
    batch = make_batch(2, 8, dtype=torch.float64, present={"video": present})
    output = model(batch.inputs, batch.present)
    logs = method(output, batch.targets).logs
    probability = method.heads["video"](output.features["video"]).softmax(1)[torch.arange(8), batch.targets]
    torch.testing.assert_close(logs["score_video"], probability[:2].mean().detach())
    absent = make_batch(2, 8, dtype=torch.float64, present={"video": torch.zeros(8, dtype=torch.bool)})
    method.discard_losses()
    logs = method(model(absent.inputs, absent.present), absent.targets).logs
    assert float(logs["score_video"]) == float(logs["score_audio"])  # of no sample: as good as the others


def test_accumulated_batches_count_as_one():
    batch = make_batch(2, 12, dtype=torch.float64)
    results = []
    for splits in (1, 3):
        torch.manual_seed(0)
        model, method = set_up(2, alpha=2.0, beta=10.0)
        for rows in torch.arange(12).chunk(splits):
            losses = method(model({u: x[rows] for u, x in batch.inputs.items()}), batch.targets[rows])
            method.backward(losses, model, scale=1 / splits)
        method.adjust_gradients(model)
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_evaluation_leaves_no_scores_behind():
    model, method = set_up(2)
    batch = make_batch(2, dtype=torch.float64)
    method.eval()
    method(model(batch.inputs), batch.targets).total.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.adjust_gradients(model)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())
