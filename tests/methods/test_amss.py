import itertools
import math

import numpy as np
import pytest
import torch

import bmlr
from bmlr.methods import AMSS, Joint
from method_loop import MethodLoop
from zoo import make_batch, make_model


def entropy(row):
    return -sum(float(p) * math.log(float(p)) for p in row.softmax(0))


def literal_fractions(output, targets, temperature):
    """c of each modality, one sample at a time."""
    frequencies = [sum(int(y) == c for y in targets) / len(targets) for c in range(3)]
    normaliser = math.log(sum(math.exp(n) for n in frequencies))
    of_classes = -sum(n * (n - normaliser) for n in frequencies)
    exponents = {}
    for u, logits in output.unimodal_logits.items():
        losses = [-math.log(float(x.softmax(0)[y])) for x, y in zip(logits.detach(), targets, strict=True)]
        information = of_classes - sum(losses) / len(losses) + 0.5
        entropies = [entropy(z) for z in output.features[u].detach()]
        if information <= 0:
            return dict.fromkeys(output.features, 1 / len(output.features))
        exponents[u] = -information / (sum(entropies) / len(entropies)) / temperature
    total = sum(math.exp(x) for x in exponents.values())
    return {u: min(max(math.exp(x) / total, 0.1), 0.9) for u, x in exponents.items()}


def literal_factors(gradient, fraction, draws, method):
    """Units ring at the time draw / share; the first are drawn, and what follows fixes their probabilities."""
    norms = [sum(float(x) ** 2 for x in row.flatten()) for row in gradient]
    shares = [g / sum(norms) for g in norms]
    times = [float(draw) / share for draw, share in zip(draws, shares, strict=True)]
    count = math.ceil(len(norms) * fraction)
    order = sorted(range(len(norms)), key=times.__getitem__)
    factors = [0.0] * len(norms)
    for k in order[:count]:
        if not method.unbiased:
            factors[k] = 1.0
        elif method.factor == "official":
            factors[k] = 1 / (shares[k] + 1 / len(norms))
        else:  # rings before the first that is left out with this probability
            factors[k] = 1.0 if count == len(norms) else 1 / (1 - math.exp(-shares[k] * times[order[count]]))
    return factors


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("parameters", [{}, {"unbiased": True}, {"unbiased": True, "factor": "official", "seed": 3}])
def test_gradients_over_several_steps_are_those_of_the_formula(modalities, parameters):
    model, method = make_model(modalities, dtype=torch.float64), AMSS(**parameters)
    method.setup(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for number in range(3):
        batch = make_batch(modalities, 12, dtype=torch.float64, seed=number)
        optimizer.zero_grad()
        output = model(batch.inputs)
        fractions = literal_fractions(output, batch.targets, 0.2)
        losses = method(output, batch.targets)
        for u, fraction in fractions.items():
            assert float(losses.logs[f"fraction_{u}"]) == pytest.approx(fraction, rel=1e-9)
        method.backward(losses, model)
        plain = {name: p.grad.clone() for name, p in model.named_parameters()}
        method.adjust_gradients(model)
        generator = method.generator(number)
        for u in sorted(fractions):
            for name, p in model.encoders[u].named_parameters(prefix=f"encoders.{u}"):
                gradient = plain.pop(name)
                if p.ndim > 1:
                    draws = torch.empty(len(p), dtype=torch.float64).exponential_(generator=generator)
                    factors = literal_factors(gradient, fractions[u], draws, method)
                    assert 0 < sum(x > 0 for x in factors) < len(p)
                    gradient = torch.tensor(factors, dtype=torch.float64)[:, None] * gradient
                torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-14)
        for name, gradient in plain.items():
            assert torch.equal(model.get_parameter(name).grad, gradient)
        optimizer.step()
    assert method.step == 3


def test_a_modality_that_says_nothing_yet_makes_all_fractions_equal():
    model, method, batch = make_model(3, dtype=torch.float64), AMSS(), make_batch(3, dtype=torch.float64)
    with torch.no_grad():
        model.fusion.linear.weight.mul_(1000)
    output = model(batch.inputs)
    assert literal_fractions(output, batch.targets, 0.2)["audio"] == 1 / 3
    assert all(float(c) == 1 / 3 for c in method(output, batch.targets).logs.values())
    absent = make_batch(2, present={"video": torch.zeros(8, dtype=torch.bool)})
    model, method = make_model(2), AMSS()
    assert [float(c) for c in method(model(absent.inputs, absent.present), absent.targets).logs.values()] == [0.5, 0.5]


def test_draws_are_those_without_replacement_and_the_exact_factor_is_unbiased():
    norms, count, runs = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64), 2, 3000
    generator = np.random.default_rng(0)  # PyTorch's draws differ between versions
    methods = {"drawn": AMSS(), "exact": AMSS(unbiased=True)}
    means = {name: torch.zeros(4, dtype=torch.float64) for name in methods}
    for _ in range(runs):
        draws = torch.from_numpy(generator.exponential(size=4))
        for name, method in methods.items():
            means[name] += method.factors(norms, torch.tensor(count / 4, dtype=torch.float64), draws) / runs
    expected = [0.0] * 4
    for first, second in itertools.permutations(range(4), 2):
        probability = norms[first] / 10 * norms[second] / (10 - norms[first])
        expected[first] += float(probability)
        expected[second] += float(probability)
    assert means["drawn"].tolist() == pytest.approx(expected, abs=0.02)
    assert means["exact"].tolist() == pytest.approx([1.0] * 4, abs=0.06)


def test_the_official_factor_is_half_the_number_of_units():
    draws = torch.empty(64).exponential_(generator=torch.Generator().manual_seed(0))
    factors = AMSS(unbiased=True, factor="official").factors(torch.ones(64), torch.tensor(0.5), draws)
    assert sorted(factors.tolist()) == pytest.approx([0.0] * 32 + [32.0] * 32)
    factors = AMSS(unbiased=True).factors(torch.ones(64), torch.tensor(0.5), draws)
    assert float(factors.mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("unbiased", [False, True])
def test_units_without_a_gradient_are_never_drawn(unbiased):
    method, draws = AMSS(unbiased=unbiased), torch.ones(4)
    assert method.factors(torch.zeros(4), torch.tensor(0.5), draws).tolist() == [0.0] * 4
    assert method.factors(torch.tensor([1.0, 0, 0, 0]), torch.tensor(0.5), draws).tolist() == [1.0, 0, 0, 0]
    assert method.factors(torch.ones(4), torch.tensor(1.0), draws).tolist() == [1.0] * 4


def test_filters_are_the_units_of_convolutions_and_no_other_gradient_is_masked():
    encoders = {u: bmlr.encoders.resnet18(in_channels=1, width=4, stem="small") for u in ("audio", "image")}
    model = bmlr.MultimodalClassifier(encoders, 3)
    batch = bmlr.Batch({u: torch.randn(6, 1, 8, 8) for u in encoders}, torch.arange(6) % 3)
    method = AMSS(scope="conv")
    method.setup(model)
    method.backward(method(model(batch.inputs), batch.targets), model)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.adjust_gradients(model)
    for name, p in model.named_parameters():
        if p.ndim == 4:
            is_kept = p.grad.flatten(1).any(1)
            assert 0 < int(is_kept.sum()) < len(p)
            assert torch.equal(p.grad[is_kept], before[name][is_kept])
        else:
            assert torch.equal(p.grad, before[name])


def test_where_nothing_is_masked_it_is_joint_training():
    """Encoders without a convolution, of which convolutions are to be masked."""
    states = []
    for method in (AMSS(scope="conv"), Joint()):
        loop = MethodLoop(make_model(2), method, make_batch(2, 24))
        loop.run(range(2))
        states.append(loop.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
