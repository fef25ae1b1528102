import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bmlr
from bmlr.methods import Joint, ReconBoost, ReconBoostBalanceBenchmark
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes, stored
from zoo import FEATURE_DIMS, INPUT_DIMS, make_batch, make_model

FORMS = {"paper": ReconBoost, "benchmark": ReconBoostBalanceBenchmark}


def set_up(method, model):
    method.setup(model)
    return method


def equal_width_model(modalities=("audio", "video")):
    return bmlr.MultimodalClassifier({name: nn.Linear(INPUT_DIMS[name], 6) for name in modalities}, 3)


def tagged(tag, **options):
    batch = make_batch(**options)
    batch.tag = tag
    return batch


def step(method, model, batch):
    model.zero_grad()
    method.zero_grad()
    losses = method.compute_losses(model, batch)
    method.backward(losses, model)
    method.adjust_gradients(model)
    return losses


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    modalities=st.sampled_from([2, 3]),
    w1=st.floats(1, 6),
    w2=st.floats(0, 1),
    r=st.floats(0.01, 3),
)
def test_boosting_loss_agrees_with_a_literal_version(seed, modalities, w1, w2, r):
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    batch = tagged("boost:video", modalities=modalities, batch_size=4, dtype=torch.float64, seed=seed)
    method = set_up(ReconBoost(w1=w1, w2=w2, r_init=r), model)
    logits = {name: values.tolist() for name, values in method.predict(model(batch.inputs)).unimodal_logits.items()}
    total = 0.0
    for i, y in enumerate(batch.targets.tolist()):
        ensemble = [method.boost_rate.item() * sum(logits[u][i][c] for u in logits if u != "video") for c in range(3)]
        q = math.exp(ensemble[y]) / sum(map(math.exp, ensemble))
        p = math.exp(logits["video"][i][y]) / sum(map(math.exp, logits["video"][i]))
        total -= (w1 - w2 * q) * math.log(p) / 3
    assert method.compute_losses(model, batch).total.item() == pytest.approx(total / 4)


@pytest.mark.parametrize("modalities", [2, 3])
def test_only_the_active_modality_and_its_head_learn_while_boosting(modalities):
    model = make_model(modalities)
    method = set_up(ReconBoost(), model)
    step(method, model, tagged("boost:video", modalities=modalities))
    for name, encoder in model.encoders.items():
        assert all((p.grad is not None) == (name == "video") for p in encoder.parameters())
    assert all((p.grad is not None) == name.startswith("heads.video") for name, p in method.named_parameters())
    step(method, model, tagged("rectify", modalities=modalities))
    assert all(p.grad is not None for p in (*model.encoders.parameters(), *method.parameters()))


def test_zeroed_gradients_become_none_so_that_momentum_moves_nothing():
    loop = MethodLoop(make_model(), ReconBoost(pretrained=True), make_batch(batch_size=12))
    loop.step(tagged("rectify"))
    before = {name: p.detach().clone() for name, p in loop.model.encoders["audio"].named_parameters()}
    loop.optimizer.zero_grad(set_to_none=False)
    losses = loop.method.compute_losses(loop.model, tagged("boost:video"))
    loop.method.backward(losses, loop.model)
    loop.method.adjust_gradients(loop.model)
    loop.optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in loop.model.encoders["audio"].named_parameters())
    assert loop.method.boost_rate.grad is None


@pytest.mark.parametrize("shared_head", [True, False])
def test_what_the_others_predict_is_held_constant(shared_head):
    model, batch = equal_width_model().double(), tagged("boost:video", dtype=torch.float64)
    method = set_up(ReconBoost(shared_head=shared_head), model)
    losses = method.compute_losses(model, batch)
    losses.total.backward()
    actual = {name: p.grad for name, p in method.named_parameters()}
    method.zero_grad()
    logits = method.predict(model(batch.inputs)).unimodal_logits
    q = logits["audio"].softmax(1).gather(1, batch.targets[:, None])[:, 0].detach()
    p = logits["video"].log_softmax(1).gather(1, batch.targets[:, None])[:, 0]
    (-(5 - q) * p / 3).mean().backward()
    for name, value in method.named_parameters():
        assert (actual[name] is None) == (value.grad is None)
        if value.grad is not None:
            torch.testing.assert_close(actual[name], value.grad)
    assert actual["boost_rate"] is None


def test_first_stage_has_no_ensemble_and_learns_with_constant_weight():
    model = make_model(dtype=torch.float64)
    loop = MethodLoop(model, ReconBoost(w1=4.0), make_batch(batch_size=12, dtype=torch.float64))
    loop.method.start_epoch(loop.context(0))
    batch = tagged("boost:audio", dtype=torch.float64)
    logits = loop.method.predict(model(batch.inputs)).unimodal_logits["audio"]
    expected = nn.functional.cross_entropy(logits, batch.targets) * (4 - 1) / 3
    torch.testing.assert_close(loop.method.compute_losses(model, batch).total, expected)


def test_the_official_ensemble_grows_and_predicts():
    model = make_model(3)
    loop = MethodLoop(model, ReconBoost(r_init=0.5), make_batch(3, 12))
    output = model(loop.train.inputs)
    members = []
    for epoch in range(5):
        plan = loop.method.start_epoch(loop.context(epoch))
        members.append(loop.method.members)
        active = model.modalities[epoch % 3]
        assert [p.tag for p in plan.passes] == [f"boost:{active}"] * 4 + ["rectify"] * 4
        assert [p.fresh_optimizer for p in plan.passes] == [True, False, False, False] * 2
        prediction = loop.method.predict(output)
        torch.testing.assert_close(prediction.logits, 0.5 * sum(prediction.unimodal_logits[u] for u in members[-1]))
    assert members == [("audio",), ("audio", "video")] + [("audio", "video", "text")] * 3
    pretrained = MethodLoop(make_model(3), ReconBoost(pretrained=True), make_batch(3, 12))
    pretrained.method.start_epoch(pretrained.context(0))
    assert pretrained.method.members == ("audio", "video", "text")


def test_state_restores_the_predictions_of_a_growing_ensemble():
    loop = MethodLoop(make_model(3), ReconBoost(t1=1, t2=1), make_batch(3, 12))
    loop.run(range(2))
    other = set_up(ReconBoost(t1=1, t2=1), make_model(3))
    other.load_state_dict(loop.method.state_dict())
    output = loop.model(loop.train.inputs)
    expected = loop.method.predict(output)
    assert torch.equal(other.predict(output).logits, expected.logits)
    two = loop.method.boost_rate * (expected.unimodal_logits["audio"] + expected.unimodal_logits["video"])
    torch.testing.assert_close(expected.logits, two)


def test_modalities_outside_the_ensemble_rest():
    loop = MethodLoop(make_model(batch_norm=True), ReconBoost(), make_batch(batch_size=12))
    before = {name: value.clone() for name, value in loop.model.encoders["video"].state_dict().items()}
    loop.run([0])
    assert all(torch.equal(value, before[name]) for name, value in loop.model.encoders["video"].state_dict().items())
    loop.run([1])
    assert not torch.equal(loop.model.encoders["video"].state_dict()["0.weight"], before["0.weight"])


def test_the_benchmark_plans_a_stage_of_two_passes_per_modality():
    loop = MethodLoop(make_model(3), ReconBoostBalanceBenchmark(order=("text", "audio", "video")), make_batch(3, 12))
    plan = loop.method.start_epoch(loop.context(0))
    assert [p.tag for p in plan.passes] == ["boost:text", "rectify", "boost:audio", "rectify", "boost:video", "rectify"]
    assert not any(p.fresh_optimizer for p in plan.passes)
    assert loop.method.boost_rate.item() == pytest.approx(0.01)
    assert all(isinstance(head, nn.Linear) for head in loop.method.heads.values())
    assert set(loop.method.members) == {"audio", "video", "text"}


def test_fractiond_head_is_one_module():
    method = set_up(ReconBoost(), equal_width_model())
    assert sorted(method.state_dict()) == [
        "boost_rate", "epoch", "heads.0.bias", "heads.0.weight", "heads.2.bias", "heads.2.weight", "max_epochs",
        "num_members",
    ]  # fmt: skip
    assert method.heads[0].out_features == 256
    separate = set_up(ReconBoost(shared_head=False, hidden=0), equal_width_model())
    assert set(separate.heads) == {"audio", "video"}


def test_a_shared_head_needs_equal_widths():
    with pytest.raises(
        ValueError, match=r"^Parameter `shared_head` should be False where feature widths differ\. Found"
    ):
        ReconBoost(shared_head=True).setup(make_model())
    with pytest.raises(ValueError, match="`order` should name"):
        ReconBoost(order=("audio", "audio")).setup(make_model())


def test_rectification_with_linear_heads_is_the_joint_baseline_with_sum_fusion():
    model, batch = make_model(3, "sum"), make_batch(3)
    method = set_up(ReconBoost(shared_head=False, hidden=0), model)
    method.heads.load_state_dict(model.fusion.heads.state_dict())
    rectification = method(model(batch.inputs), batch.targets).total
    assert torch.equal(rectification, set_up(Joint(), model)(model(batch.inputs), batch.targets).total)


def test_memory_consolidation_is_off_or_acts_on_the_active_modality():
    model, batch = make_model(3, dtype=torch.float64), tagged("boost:video", modalities=3, dtype=torch.float64)
    method = set_up(ReconBoost(mcr="real", mcr_weight=0.3), model)
    assert set(method.compute_losses(model, batch).terms) == {"video"}  # nothing was updated before the first stage
    method.epoch = 1
    losses = method.compute_losses(model, batch)
    logits = method.predict(model(batch.inputs)).unimodal_logits
    expected = 0.3 * (logits["video"].softmax(1) - logits["audio"].softmax(1)).square().mean()
    torch.testing.assert_close(losses.terms["video_consolidation"], expected)
    losses.terms["video_consolidation"].backward()
    assert all(p.grad is None for p in model.encoders["audio"].parameters())
    assert all(p.grad is not None for p in model.encoders["video"].parameters())
    method.mcr = "none"
    assert set(method.compute_losses(model, batch).terms) == {"video"}


@pytest.mark.parametrize("clean_bn", [False, True])
def test_batch_statistics_of_the_modalities_held_still(clean_bn):
    model = make_model(batch_norm=True).train()
    method = set_up(ReconBoost(clean_bn=clean_bn), model)
    step(method, model, tagged("boost:video"))
    assert bool(model.encoders["audio"][1].running_mean.any()) != clean_bn
    assert bool(model.encoders["video"][1].running_mean.any())
    assert all(module.training for module in model.modules())


def test_boost_rate_may_be_fixed():
    model = make_model()
    method = set_up(ReconBoost(r_learnable=False, r_init=0.7), model)
    step(method, model, tagged("rectify"))
    assert method.boost_rate.grad is None
    assert method.compute_losses(model, tagged("rectify")).logs["boost_rate"].item() == pytest.approx(0.7)


def test_an_absent_modality_adds_nothing_and_does_not_learn():
    present = {"video": torch.tensor([True, False, True, False])}
    model = make_model(dtype=torch.float64)
    method = set_up(ReconBoost(), model)
    batch = tagged("boost:video", batch_size=4, dtype=torch.float64, present=present)
    prediction = method.predict(model(batch.inputs, batch.present))
    torch.testing.assert_close(prediction.logits[1], prediction.unimodal_logits["audio"][1])
    rows = present["video"]
    alone = bmlr.Batch({u: x[rows] for u, x in batch.inputs.items()}, batch.targets[rows], tag="boost:video")
    torch.testing.assert_close(method.compute_losses(model, batch).total, method.compute_losses(model, alone).total)


def test_fractiond_head_learns_under_autocast():
    model, batch = equal_width_model(), tagged("boost:video")
    method = set_up(ReconBoost(), model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.compute_losses(model, batch)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.heads.parameters())


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_resumes_bit_for_bit(form, modalities):
    assert_resumes(lambda: FORMS[form](t1=1, t2=1, mcr="real"), modalities)


def test_state_holds_the_ensemble():
    loop = MethodLoop(make_model(3), ReconBoost(t1=1, t2=1), make_batch(3, 12))
    loop.run(range(2))
    state = stored(loop.method.state_dict())
    assert (state["epoch"], state["max_epochs"], state["num_members"]) == (1, 4, 2)
    assert state["boost_rate"].item() != 1


@pytest.mark.parametrize("tag", ["rectify", "boost:video"])
def test_order_of_modalities_does_not_matter(tag):
    order = ("audio", "video", "text")
    assert_any_order(lambda: ReconBoost(order=order), order, tag)


@pytest.mark.parametrize("tag", ["rectify", "boost:video"])
def test_half_precision(tag):
    assert_half_precision(ReconBoost, 3, tag)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_every_fusion(fusion, modalities):
    assert_every_fusion(lambda: ReconBoost(t1=1, t2=1), fusion, modalities)


def test_auxiliary_readouts_learn_from_the_features_that_are_there():
    model = make_model(2, "concat", unimodal="auxiliary")
    method = set_up(ReconBoost(), model)
    assert set(step(method, model, tagged("boost:video")).terms) == {"video", "video_readout"}
    assert model.fusion.auxiliary["video"].weight.shape == (3, FEATURE_DIMS["video"])
    assert model.fusion.auxiliary["video"].weight.grad is not None


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"t1": 0}, "t1"),
        ({"t2": -1}, "t2"),
        ({"w1": 0.0}, "w1"),
        ({"w2": -1.0}, "w2"),
        ({"w1": 1.0, "w2": 2.0}, "w2"),
        ({"r_init": 0.0}, "r_init"),
        ({"hidden": -1}, "hidden"),
        ({"mcr": "ga"}, "mcr"),
        ({"mcr_weight": -1.0}, "mcr_weight"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        ReconBoost(**parameters)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fresh", [True, False])
def test_optimisers_are_forgotten_as_said(form, fresh):
    loop = MethodLoop(make_model(), FORMS[form](reset_optimizer_per_phase=fresh), make_batch())
    assert loop.method.start_epoch(loop.context(0)).passes[0].fresh_optimizer == fresh


def test_weights_may_be_equal():
    assert ReconBoost(w1=2.0, w2=2.0).w2 == 2.0
    with pytest.raises(ValueError, match=r"^Parameter `w2` should be at most `w1 = 2.0`\. Found `w2 = 2.5`\.$"):
        ReconBoost(w1=2.0, w2=2.5)


def test_bad_batches():
    model = make_model()
    method = set_up(ReconBoost(), model)
    with pytest.raises(ValueError, match="`tag` should be one of audio, video"):
        method.compute_losses(model, tagged("boost:text"))
    batch = tagged("rectify")
    del batch.inputs["audio"]
    with pytest.raises(ValueError, match="`inputs` should have the modalities"):
        method.compute_losses(model, batch)


def test_needs_setup():
    model, batch = make_model(), make_batch()
    with pytest.raises(
        RuntimeError,
        match=r"^ReconBoost has no heads: call `method\.setup\(model\)` once, before the optimiser is made\.$",
    ):
        ReconBoost()(model(batch.inputs), batch.targets)
    with pytest.raises(
        RuntimeError,
        match=r"^ReconBoost has no heads: call `method\.setup\(model\)` once, before the optimiser is made\.$",
    ):
        ReconBoost().compute_losses(model, tagged("boost:video"))
    with pytest.raises(
        RuntimeError,
        match=r"^ReconBoost has no heads: call `method\.setup\(model\)` once, before the optimiser is made\.$",
    ):
        ReconBoost().start_epoch(MethodLoop(model, Joint(), batch).context(0))
