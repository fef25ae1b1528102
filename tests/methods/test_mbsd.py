import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr
from bmlr.methods import MBSD, Joint, MBSDBalanceBenchmark
from method_loop import assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes
from zoo import make_batch, make_model

FORMS = {"paper": MBSD, "benchmark": MBSDBalanceBenchmark}


def softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def literal_pair(first, second, y, form, *, of_logits):
    """Distillation of one sample and one pair, in plain Python."""
    p, q, classes = softmax(first), softmax(second), len(first)
    if p.index(max(p)) != y and q.index(max(q)) != y:
        return 0.0
    strong, weak = (first, second) if p[y] >= q[y] else (second, first)
    ps, pr = softmax(strong), softmax(weak)
    if form == "paper":
        divergence = sum(a * (math.log(a) - math.log(b)) for a, b in zip(ps, pr, strict=True))
        squares = sum((a - b) ** 2 for a, b in zip(strong, weak, strict=True)) / classes
    else:
        divergence = pr[y] * (math.log(pr[y]) - ps[y])
        pairs = zip(first, second, strict=True) if of_logits else zip(p, q, strict=True)
        squares = sum((a - b) ** 2 for a, b in pairs) / classes
    return (ps[y] - pr[y]) * (divergence + squares)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), modalities=st.sampled_from([2, 3]), form=st.sampled_from(list(FORMS)))
def test_agrees_with_a_literal_version(seed, modalities, form):
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    batch = make_batch(modalities, 6, dtype=torch.float64, seed=seed)
    output = model({name: 4 * x for name, x in batch.inputs.items()})
    terms = FORMS[form]()(output, batch.targets).terms
    logits = {name: values.tolist() for name, values in output.unimodal_logits.items()}
    pairs = [
        sum(
            literal_pair(logits[u][i], logits[v][i], y, form, of_logits=modalities == 2)
            for i, y in enumerate(batch.targets.tolist())
        )
        / 6
        for u, v in combinations(logits, 2)
    ]
    assert terms["distillation"].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    for name, rows in logits.items():
        entropy = -sum(math.log(softmax(row)[y]) for row, y in zip(rows, batch.targets.tolist(), strict=True)) / 6
        assert terms[name].item() == pytest.approx(entropy)


def test_the_benchmarks_gradient_is_that_of_a_loop_over_samples():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(12, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    targets = torch.randint(4, (12,), generator=generator)
    MBSDBalanceBenchmark()._distillation(first, second, targets, 2).mean().backward()
    fast = first.grad.clone(), second.grad.clone()
    first.grad = second.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for a, v, y in zip(first, second, targets, strict=True):
        p, q = a.softmax(0), v.softmax(0)
        if p.argmax() == y or q.argmax() == y:
            strong, weak = (p[y], q[y]) if p[y] > q[y] else (q[y], p[y])
            kl = torch.nn.functional.kl_div(strong, weak, reduction="none")
            total = total + (strong - weak) * ((a - v).square().mean() + kl)
    (total / 12).backward()
    torch.testing.assert_close(fast, (first.grad, second.grad))


def test_the_benchmarks_kl_term_is_never_positive():
    p = torch.rand(1000, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    other = torch.zeros_like(logits)
    squares = (logits.softmax(1) - 0.5).square().mean(1)
    targets = torch.zeros(1000, dtype=torch.int64)
    strong, weak = torch.maximum(p, torch.tensor(0.5)), torch.minimum(p, torch.tensor(0.5))
    values = MBSDBalanceBenchmark()._distillation(logits, other, targets, 3) - (strong - weak) * squares
    assert bool((values <= 1e-12).all())
    assert values.min().item() < -0.01


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_distilled_where_both_are_wrong_or_equal(form):
    method = FORMS[form]()
    wrong = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    assert method._distillation(*wrong, torch.tensor([2]), 2).item() == 0
    same = torch.tensor([[5.0, 0.0, 1.0]])
    assert method._distillation(same, same, torch.tensor([0]), 2).item() == 0


def test_the_papers_gradient_reaches_the_weaker_modality_only():
    strong = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
    weak = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    MBSD()._distillation(strong, weak, torch.tensor([0]), 2).sum().backward()
    assert strong.grad is None or not strong.grad.any()
    assert weak.grad.any()


def test_certain_predictions_have_finite_gradients():
    first = torch.tensor([[200.0, 0.0]], requires_grad=True)
    second = torch.tensor([[0.0, 200.0]], requires_grad=True)
    MBSDBalanceBenchmark()._distillation(first, second, torch.tensor([0]), 3).sum().backward()
    assert bool(torch.isfinite(first.grad).all())
    assert bool(torch.isfinite(second.grad).all())


@pytest.mark.parametrize(
    ("method", "epoch"), [(MBSD(first_epoch=2), 1), (MBSD(last_epoch=2), 3), (MBSDBalanceBenchmark(), 81)]
)
def test_is_the_joint_baseline_outside_its_epochs(method, epoch):
    model, batch = make_model(), make_batch()
    method.epoch = epoch
    assert torch.equal(
        method(model(batch.inputs), batch.targets).total, Joint()(model(batch.inputs), batch.targets).total
    )


def test_samples_without_a_modality_are_left_out_of_its_pairs():
    present = {"video": torch.tensor([True, True, False, False, True, False])}
    model = make_model(3, dtype=torch.float64)
    batch = make_batch(3, 6, dtype=torch.float64, present=present)
    output = model(batch.inputs, batch.present)
    term = MBSD()(output, batch.targets).terms["distillation"]
    logits = {name: values.tolist() for name, values in output.unimodal_logits.items()}
    pairs = []
    for u, v in combinations(logits, 2):
        rows = [i for i in range(6) if "video" not in (u, v) or present["video"][i]]
        values = [
            literal_pair(logits[u][i], logits[v][i], int(batch.targets[i]), "paper", of_logits=True) for i in rows
        ]
        pairs.append(sum(values) / len(rows))
    assert term.item() == pytest.approx(sum(pairs) / 3)


@pytest.mark.parametrize("modalities", [2, 3])
def test_resumes_bit_for_bit(modalities):
    assert_resumes(lambda: MBSDBalanceBenchmark(first_epoch=1, last_epoch=2), modalities)


@pytest.mark.parametrize("form", FORMS)
def test_order_of_modalities_does_not_matter(form):
    assert_any_order(FORMS[form], ("audio", "video", "text"))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form):
    assert_half_precision(FORMS[form], 3)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_every_fusion(fusion, modalities):
    assert_every_fusion(MBSD, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"weight": -0.1}, "weight"),
        ({"first_epoch": 0.5}, "first_epoch"),
        ({"last_epoch": -1}, "last_epoch"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        MBSD(**parameters)
