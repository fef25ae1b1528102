import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.functional import alignment
from bmlr.methods import LFM, Joint, LFMBalanceBenchmark
from bmlr.methods._lfm import fitted_label_weight
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes, stored
from zoo import make_batch, make_model

FORMS = {"paper": LFM, "benchmark": LFMBalanceBenchmark}


def set_up(method, model):
    method.setup(model)
    return method


def literal_alignment(first, second):
    def softmax(row):
        return [math.exp(x) / sum(math.exp(t) for t in row) for x in row]

    p, q = softmax(first), softmax(second)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 0.5 * sum(c * math.log(c / a) + c * math.log(c / b) for a, b, c in zip(p, q, m, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    modalities=st.sampled_from([2, 3]),
    head=st.sampled_from(["late_avg", "fusion"]),
    weight=st.floats(0, 0.99),
)
def test_agrees_with_a_literal_version(seed, modalities, head, weight):
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    batch = make_batch(modalities, 4, dtype=torch.float64, seed=seed)
    method = set_up(LFM(alpha="constant", head=head, label_weight=weight), model)
    output = model(batch.inputs)
    terms = method(output, batch.targets).terms
    if head == "late_avg":
        logits = {u: F.linear(z, method.heads[u].weight, method.heads[u].bias) for u, z in output.features.items()}
        fused = sum(logits.values()) / modalities
    else:
        logits, fused = output.unimodal_logits, output.logits
    rows = {u: values.tolist() for u, values in logits.items()}
    pairs = [sum(map(literal_alignment, rows[u], rows[v])) / 4 for u, v in combinations(rows, 2)]
    label = -sum(row[y].item() for row, y in zip(fused.log_softmax(1), batch.targets, strict=True)) / 4
    assert terms["fused"].item() == pytest.approx(2 * weight * label)
    assert terms["alignment"].item() == pytest.approx(2 * (1 - weight) * sum(pairs) / len(pairs))


def test_equal_predictions_are_aligned():
    logits = torch.randn(6, 4)
    assert alignment(logits, logits + 2.0).abs().max() < 1e-6  # a shift of the logits is the same prediction


def test_alignment_of_certain_predictions_has_finite_gradients():
    first = torch.tensor([[90.0, -90.0]], requires_grad=True)
    value = alignment(first, torch.tensor([[-90.0, 90.0]]))
    value.sum().backward()
    assert bool(torch.isfinite(first.grad).all())
    torch.testing.assert_close(value.detach(), torch.tensor([90.0 - math.log(2)]))


@pytest.mark.parametrize(
    ("epoch", "value"),
    [
        (0, 0.2046), (10, 0.2478), (20, 0.3009), (29, 0.3486), (50, 0.4367), (69, 0.4823), (100, 0.5392),
        (140, 0.7425), (160, 0.9007), (170, 0.9686), (180, 1.0), (190, 0.9952), (199, 0.9160), (250, 0.9160),
    ],
)  # fmt: skip
def test_polynomial(epoch, value):
    assert fitted_label_weight(epoch, 200) == pytest.approx(value, abs=1e-4)


def test_polynomial_is_stretched_over_the_run():
    assert LFM().current_label_weight == fitted_label_weight(0, 200)
    assert fitted_label_weight(69, 70) == fitted_label_weight(199, 200)
    assert fitted_label_weight(1, 2) == fitted_label_weight(199, 200)
    assert fitted_label_weight(0, 1) == fitted_label_weight(0, 200)
    loop = MethodLoop(make_model(), LFM(), make_batch(batch_size=12), max_epochs=5)
    loop.run(range(3))
    assert loop.method.current_label_weight == fitted_label_weight(2, 5)
    raw = MethodLoop(make_model(), LFM(schedule_epochs=200), make_batch(batch_size=12), max_epochs=5)
    raw.run(range(3))
    assert raw.method.current_label_weight == fitted_label_weight(2, 200)


def test_without_alignment_it_is_twice_the_joint_baseline():
    model, batch = make_model(3), make_batch(3)
    method = set_up(LFM(alpha="constant", head="fusion", label_weight=1.0), model)
    assert torch.equal(
        method(model(batch.inputs), batch.targets).total, 2 * Joint()(model(batch.inputs), batch.targets).total
    )


def test_late_average_leaves_the_fusion_alone_and_predicts_with_its_heads():
    model, batch = make_model(), make_batch()
    method = set_up(LFM(), model)
    method(model(batch.inputs), batch.targets).total.backward()
    assert all(p.grad is None for p in model.fusion.parameters())
    assert all(p.grad is not None for p in (*method.heads.parameters(), *model.encoders.parameters()))
    prediction = method.predict(model(batch.inputs))
    torch.testing.assert_close(prediction.logits, torch.stack(list(prediction.unimodal_logits.values())).mean(0))


def test_both_forms_have_the_defaults_of_the_codes():
    official, benchmark = LFM(alpha="learnable"), LFMBalanceBenchmark()
    assert (official.head, official.current_label_weight, official.meta_size) == ("late_avg", 0.05, 8)
    assert (benchmark.alpha, benchmark.head, benchmark.current_label_weight, benchmark.meta_size) == (
        "learnable",
        "fusion",
        0.95,
        None,
    )


def test_a_constant_weight_is_even_unless_given():
    assert [FORMS[form](alpha="constant").current_label_weight for form in FORMS] == [0.5, 0.5]
    assert LFMBalanceBenchmark(alpha="constant", label_weight=0.3).current_label_weight == 0.3


@pytest.mark.parametrize(("meta_size", "samples"), [(None, 10), (1, 1), (4, 4)])
def test_samples_of_the_validation_split_are_a_quarter_of_its_first_batch_or_as_many_as_said(meta_size, samples):
    loop = MethodLoop(make_model(), LFMBalanceBenchmark(meta_size=meta_size), make_batch(batch_size=90), batch_size=40)
    loop.method.start_epoch(loop.context(0))
    assert loop.method._meta_batch.indices.tolist() == list(range(samples))


def by_finite_differences(model, method, batch, first):
    """Mean over the first parameter of d/dθ ⟨∇L_tot(θ), c⟩ for the fixed c = ∇CE(θ), by central differences."""
    parameters = [p for p in (*model.parameters(), *method.parameters()) if p.requires_grad]

    def gradient(weight):
        output = model(batch.inputs)
        logits = method._unimodal_logits(output)
        label = F.cross_entropy(method._fused_logits(output, logits), batch.targets)
        total = label if weight is None else weight * label + (1 - weight) * method._alignment(output, logits)
        return torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)

    constant, values = gradient(None), []
    for i in range(first.numel()):
        products = []
        for step in (1e-5, -1e-5):
            first.data.view(-1)[i] += step
            products.append(sum((g * c).sum() for g, c in zip(gradient(0.3), constant, strict=True)))
            first.data.view(-1)[i] -= step
        values.append((products[0] - products[1]).item() / 2e-5)
    return sum(values) / len(values)


@pytest.mark.parametrize("head", ["late_avg", "fusion"])
def test_hyper_gradient_is_the_derivative_of_the_inner_product(head):
    model, batch = make_model(3, dtype=torch.float64), make_batch(3, dtype=torch.float64)
    method = set_up(LFM(alpha="learnable", head=head, label_weight=0.3), model)
    expected = by_finite_differences(model, method, batch, next(model.parameters()))
    assert abs(expected) > 1e-7
    assert method._hyper_gradient(model, batch) == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_absent_modalities_have_no_part_in_the_hyper_gradient():
    mask = torch.arange(8) % 3 > 0
    model, method = make_model(dtype=torch.float64), LFM(alpha="learnable", label_weight=0.3)
    method.setup(model)
    values = []
    for filler in (0.0, math.nan):
        batch = make_batch(dtype=torch.float64, present={"video": mask})
        batch.inputs["video"][~mask] = filler
        values.append(method._hyper_gradient(model, batch))
    assert values[0] == values[1]
    assert values[0] != method._hyper_gradient(model, make_batch(dtype=torch.float64))


def test_all_parameters_may_take_part_in_the_hyper_gradient():
    model, batch = make_model(dtype=torch.float64), make_batch(dtype=torch.float64)
    method = set_up(LFM(alpha="learnable", label_weight=0.3, meta_scope="all"), model)
    used = [*model.encoders.parameters(), *method.parameters()]
    sums = [by_finite_differences(model, method, batch, p) * p.numel() for p in used]
    expected = sum(sums) / sum(p.numel() for p in used)
    assert method._hyper_gradient(model, batch) == pytest.approx(expected, rel=1e-4)


def test_label_weight_moves_against_the_hyper_gradient_and_stays_in_bounds():
    train = make_batch(batch_size=24)
    loop = MethodLoop(make_model(dtype=torch.float32), LFM(alpha="learnable", label_weight=0.3, meta_lr=0.5), train)
    loop.model.train()
    method, context = loop.method, loop.context(20)
    rows = torch.tensor(sorted(method._held_out(context)))
    gradient = method._hyper_gradient(loop.model, loop.take(rows))
    method.start_epoch(context)
    assert method.current_label_weight == pytest.approx(0.3 + 0.25 * gradient)  # half of 0.5: epoch 20
    method.meta_lr = 1e9
    method.start_epoch(loop.context(21))
    assert method.current_label_weight in (pytest.approx(0.05), pytest.approx(0.95))


def test_samples_of_the_learnable_weight_are_held_out_of_training():
    loop = MethodLoop(make_model(), LFM(alpha="learnable", meta_size=5), make_batch(batch_size=24))
    (planned,) = loop.method.start_epoch(loop.context(0)).passes
    held_out = set(range(24)) - set(planned.indices)
    assert len(held_out) == 5
    assert held_out == set(loop.method._held_out(loop.context(1)))


def test_the_benchmark_learns_from_a_quarter_of_the_first_validation_batch_in_training_mode():
    loop = MethodLoop(make_model(batch_norm=True), LFMBalanceBenchmark(), make_batch(batch_size=24), batch_size=8)
    loop.model.eval()
    batch_norm = loop.model.encoders["audio"][1]
    before = batch_norm.running_mean.clone()
    assert len(loop.method.start_epoch(loop.context(0)).passes[0].indices or ()) == 0
    assert loop.method._meta_batch.indices.tolist() == [0, 1]
    assert not torch.equal(batch_norm.running_mean, before)
    assert not any(module.training for module in loop.model.modules())
    official = MethodLoop(make_model(batch_norm=True), LFM(alpha="learnable"), make_batch(batch_size=24))
    official.model.train()
    official.method.start_epoch(official.context(0))
    assert not official.model.encoders["audio"][1].running_mean.any()
    assert all(module.training for module in official.model.modules())


class Attention(nn.Module):
    """A Transformer encoder of vectors cut into tokens."""

    num_features = 6

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(1, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.width = width

    def forward(self, x):
        return self.layer(self.embed(x[..., None])).mean(1)


@pytest.mark.parametrize("form", FORMS)
def test_transformers_can_be_differentiated_twice(form):
    model = bmlr.MultimodalClassifier({"audio": Attention(4), "video": Attention(6)}, 3)
    loop = MethodLoop(model, FORMS[form](alpha="learnable", meta_size=4, label_weight=0.5), make_batch(batch_size=12))
    loop.run(range(2))
    assert loop.method.current_label_weight != 0.5


def test_late_average_is_over_the_modalities_a_sample_has():
    present = {"video": torch.tensor([True, False, True, False])}
    model, batch = make_model(3), make_batch(3, 4, present=present)
    prediction = set_up(LFM(), model).predict(model(batch.inputs, batch.present))
    logits = prediction.unimodal_logits
    torch.testing.assert_close(prediction.logits[0], (logits["audio"] + logits["video"] + logits["text"])[0] / 3)
    torch.testing.assert_close(prediction.logits[1], (logits["audio"] + logits["text"])[1] / 2)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    ("cls", "parameters"),
    [(LFM, {}), (LFM, {"alpha": "learnable", "meta_lr": 0.1}), (LFMBalanceBenchmark, {"meta_lr": 0.1})],
)
def test_resumes_bit_for_bit(cls, parameters, modalities):
    assert_resumes(lambda: cls(**parameters), modalities)


def test_state_holds_the_learned_weight():
    loop = MethodLoop(make_model(), LFM(alpha="learnable", meta_lr=0.1), make_batch(batch_size=18))
    loop.run(range(2))
    state = stored(loop.method.state_dict())
    assert (state["epoch"], state["max_epochs"]) == (1, 4)
    assert state["current_label_weight"].item() == loop.method.current_label_weight


@pytest.mark.parametrize("form", FORMS)
def test_order_of_modalities_does_not_matter(form):
    assert_any_order(FORMS[form], ("audio", "video", "text"))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form):
    assert_half_precision(FORMS[form], 3)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("form", FORMS)
def test_every_fusion(form, fusion, modalities):
    assert_every_fusion(FORMS[form], fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"alpha": "fit"}, "alpha"),
        ({"head": "concat"}, "head"),
        ({"label_weight": 1.1}, "label_weight"),
        ({"schedule_epochs": 0}, "schedule_epochs"),
        ({"meta_lr": 0.0}, "meta_lr"),
        ({"meta_size": 0}, "meta_size"),
        ({"meta_scope": "last"}, "meta_scope"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        LFM(**parameters)


def test_needs_setup():
    output = make_model()(make_batch().inputs)
    with pytest.raises(RuntimeError, match="^LFM has heads "):
        LFM().predict(output)
    with pytest.raises(RuntimeError, match="^LFM has heads "):
        LFM()(output, make_batch().targets)


def test_too_few_training_samples():
    loop = MethodLoop(make_model(), LFM(alpha="learnable"), make_batch(batch_size=8))
    with pytest.raises(ValueError, match="`meta_size` should be below the number of training samples, 8"):
        loop.method.start_epoch(loop.context(0))


def test_no_validation_split():
    loop = MethodLoop(make_model(), LFMBalanceBenchmark(), make_batch(batch_size=8))
    context = loop.context(0)
    context.val_batches = lambda: iter(())
    with pytest.raises(
        ValueError, match=r"^LFMBalanceBenchmark with a learnable α needs a validation split\. Found none\.$"
    ):
        loop.method.start_epoch(context)


def test_batches_without_indices():
    train = make_batch(batch_size=24)
    train.indices = None
    loop = MethodLoop(make_model(), LFM(alpha="learnable"), train)
    with pytest.raises(ValueError, match="^Batches should have `indices` where a method looks"):
        loop.method.start_epoch(loop.context(0))


def test_learnable_weight_with_absent_modalities():
    present = {"video": torch.arange(24) % 3 > 0}
    train = make_batch(batch_size=24, present=present)
    loop = MethodLoop(make_model(), LFM(alpha="learnable", meta_lr=0.1), train)
    loop.run(range(2))
    meta = loop.method._meta_batch
    rows = torch.tensor(sorted(loop.method._held_out(loop.context(0))))
    assert torch.equal(meta.present["video"], present["video"][rows])
    assert torch.equal(meta.inputs["audio"], train.inputs["audio"][rows])
    assert loop.method.current_label_weight != 0.05


def test_training_splits_that_do_not_hold_the_samples():
    loop = MethodLoop(make_model(), LFM(alpha="learnable"), make_batch(batch_size=24))
    context = loop.context(0)
    context.num_train = 500
    with pytest.raises(ValueError, match="The split should hold the samples"):
        loop.method.start_epoch(context)


def test_a_hyper_gradient_that_is_not_finite():
    train = make_batch(batch_size=24)
    train.inputs["audio"][:] = torch.nan
    loop = MethodLoop(make_model(), LFM(alpha="learnable"), train)
    with pytest.raises(ValueError, match=r"should be finite\. Found nan in epoch 0"):
        loop.method.start_epoch(loop.context(0))
