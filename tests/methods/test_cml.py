import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr
from bmlr.methods import CML, CMLBalanceBenchmark, Joint
from bmlr.tasks import Multiclass
from method_loop import MethodLoop, assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes, stored
from zoo import make_batch, make_model

FORMS = {"paper": CML, "benchmark": CMLBalanceBenchmark}


def test_the_unimodal_predictions_are_those_that_were_trained():
    """Of two modalities the smaller subset is one of them, with the whole bias of the fusion."""
    model, batch = make_model(dtype=torch.float64), make_batch(dtype=torch.float64)
    alone = CML().predict(model(batch.inputs)).unimodal_logits
    entropies = {name: torch.nn.functional.cross_entropy(f, batch.targets) for name, f in alone.items()}
    for seed in range(4):
        method = CML(order="batch", seed=seed)
        output = model(batch.inputs)
        kept = sorted(output.features)[method.removal_ranks(output)[0].tolist().index(1)]
        torch.testing.assert_close(method(output, batch.targets).terms["subsets"] * 2, entropies[kept])


def literal(output, targets, ranks, *, form):
    """The loss terms one sample at a time, in plain Python, for the given order of removal."""
    names, subsets = sorted(output.features), len(output.features)
    batch = output.batch_size
    probabilities = [[] for _ in range(subsets)]
    for k in range(subsets):
        for i in range(batch):
            row = ranks[i if len(ranks) > 1 else 0]
            keep = [name for name, rank in zip(names, row.tolist(), strict=True) if rank >= k]
            probabilities[k].append(output.subset_logits(keep)[i].detach().softmax(0).tolist())
    entropies = [
        -sum(math.log(probabilities[k][i][y]) for i, y in enumerate(targets.tolist())) / batch for k in range(subsets)
    ]
    ranking = 0.0
    for k in range(1, subsets):
        rises = []
        for i, y in enumerate(targets.tolist()):
            small, large = probabilities[k][i], probabilities[k - 1][i]
            spared = small.index(max(small)) == y and large.index(max(large)) != y
            rises.append((max(small) - max(large), spared))
        if form == "benchmark":
            ranking += max(0.0, sum(rise for rise, _ in rises))
        else:
            ranking += sum(max(0.0, rise) for rise, spared in rises if not spared) / batch
    return entropies, ranking


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    modalities=st.sampled_from([2, 3]),
    form=st.sampled_from(list(FORMS)),
    order=st.sampled_from(["sample", "batch", "epoch"]),
)
def test_agrees_with_a_literal_version(seed, modalities, form, order):
    model = make_model(modalities, dtype=torch.float64, seed=seed)
    batch = make_batch(modalities, 5, dtype=torch.float64, seed=seed)
    output = model({name: 3 * x for name, x in batch.inputs.items()})
    method = FORMS[form](weight=2.0, order=order, seed=seed)
    ranks = method.removal_ranks(output)
    losses = method(output, batch.targets)
    entropies, ranking = literal(output, batch.targets, ranks, form=form)
    assert losses.terms["fused"].item() == pytest.approx(entropies[0] / modalities)
    assert losses.terms["subsets"].item() == pytest.approx(sum(entropies[1:]) / modalities)
    assert losses.terms["calibration"].item() == pytest.approx(2 * ranking, abs=1e-12)


def test_last_subset_is_the_head_on_zero_padded_features_with_the_whole_bias():
    model, batch = make_model(3), make_batch(3)
    output = model(batch.inputs)
    method = CML(order="batch")
    last = sorted(model.modalities)[method.removal_ranks(output)[0].argmax()]
    padded = torch.cat([z if name == last else torch.zeros_like(z) for name, z in output.features.items()], 1)
    torch.testing.assert_close(method._subset(output, method.removal_ranks(output) >= 2), model.fusion.linear(padded))


@pytest.mark.parametrize("form", FORMS)
def test_no_ranking_loss_and_no_gradient_where_the_removed_modality_has_no_weight(form):
    model, batch = make_model(), make_batch()
    method = FORMS[form](order="batch")
    removed = sorted(model.modalities)[method.removal_ranks(model(batch.inputs))[0].argmin()]
    columns = {"audio": slice(0, 7), "video": slice(7, 12)}[removed]
    with torch.no_grad():
        model.fusion.linear.weight[:, columns] = 0
    term = method(model(batch.inputs), batch.targets).terms["calibration"]
    term.backward()
    assert term.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_ranking_the_full_subset_has_the_joint_loss_over_the_number_of_modalities():
    model, batch = make_model(3), make_batch(3)
    terms = CML(weight=0.0)(model(batch.inputs), batch.targets).terms
    joint = Joint()(model(batch.inputs), batch.targets).total
    assert torch.equal(terms["fused"], joint / 3)
    assert terms["calibration"].item() == 0


@pytest.mark.parametrize(
    ("method", "epoch"), [(CML(first_epoch=2), 1), (CML(last_epoch=2), 3), (CMLBalanceBenchmark(), 81)]
)
def test_is_the_joint_baseline_outside_its_epochs(method, epoch):
    model, batch = make_model(), make_batch()
    method.epoch = epoch
    assert torch.equal(
        method(model(batch.inputs), batch.targets).total, Joint()(model(batch.inputs), batch.targets).total
    )


def test_the_benchmark_keeps_one_order_per_epoch_and_the_paper_draws_one_per_sample():
    output = make_model(3)(make_batch(3, 50).inputs)
    benchmark, paper = CMLBalanceBenchmark(), CML()
    orders = []
    for benchmark.epoch in range(8):
        orders.append(benchmark.removal_ranks(output).tolist())
        benchmark(output, torch.zeros(50, dtype=torch.int64))
        assert benchmark.removal_ranks(output).tolist() == orders[-1]
    assert len({str(order) for order in orders}) > 1
    ranks = paper.removal_ranks(output)
    assert sorted(map(tuple, ranks.unique(dim=0).tolist())) == sorted(
        [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    )
    paper(output, torch.zeros(50, dtype=torch.int64))
    assert not torch.equal(paper.removal_ranks(output), ranks)


def test_evaluation_leaves_the_orders_to_come_alone():
    model, batch, method = make_model(), make_batch(), CML()
    method.eval()
    method(model(batch.inputs), batch.targets)
    assert method.step == 0


def test_a_subset_counts_only_for_samples_that_have_one_of_its_modalities():
    present = {"video": torch.tensor([True, False, True, False])}
    model, batch = make_model(dtype=torch.float64), make_batch(batch_size=4, dtype=torch.float64, present=present)
    method = CML(order="batch", weight=1.0)
    ranks = lambda seed: CML(order="batch", seed=seed).removal_ranks(model(batch.inputs))[0].tolist()
    method.seed = next(seed for seed in range(50) if ranks(seed) == [0, 1])  # audio goes first, video remains
    terms = method(model(batch.inputs, batch.present), batch.targets).terms
    rows = present["video"]
    video = model({name: x[rows] for name, x in batch.inputs.items()}).subset_logits(["video"])
    expected = torch.nn.functional.cross_entropy(video, batch.targets[rows]) / 2
    torch.testing.assert_close(terms["subsets"], expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_ranking_loss_leaves_out_who_has_nothing_left(form):
    mask = torch.tensor([True, False, True, True, False, True])
    targets = make_batch(batch_size=6).targets
    logits = torch.randn(2, 6, 3, dtype=torch.float64)
    logits[1] *= 4  # most are surer without the audio
    value = FORMS[form]()._ranking(Multiclass(3), list(logits), [mask], targets)
    rises, y = [], targets.tolist()
    for i in [0, 2, 3, 5]:
        large, small = logits[0][i].softmax(0), logits[1][i].softmax(0)
        spared = form == "paper" and small.argmax() == y[i] and large.argmax() != y[i]
        rises.append(0.0 if spared else (small.max() - large.max()).item())
    expected = max(0.0, sum(rises)) if form == "benchmark" else sum(max(0.0, rise) for rise in rises) / 4
    assert expected > 0
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_resumes_bit_for_bit(form, modalities):
    assert_resumes(FORMS[form], modalities)


def test_state_counts_steps():
    loop = MethodLoop(make_model(), CML(), make_batch(batch_size=18))
    loop.run(range(2))
    assert {name: int(value) for name, value in stored(loop.method.state_dict()).items()} == {
        "epoch": 1, "max_epochs": 4, "step": 4, "run_seed": 0
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_order_of_modalities_does_not_matter(form):
    assert_any_order(FORMS[form], ("audio", "video", "text"))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form):
    assert_half_precision(lambda: FORMS[form](weight=0.1), 3)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_every_fusion(fusion, modalities):
    assert_every_fusion(CML, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"order": "step"}, "order"),
        ({"first_epoch": -1}, "first_epoch"),
        ({"first_epoch": 3, "last_epoch": 2}, "last_epoch"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        CML(**parameters)
