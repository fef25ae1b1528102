import copy
import itertools
import math

import pytest
import torch
from torch.utils.data import DataLoader

import bmlr
from bmlr.methods import EpochContext, Joint, ModalitySMV, SampleSMV
from bmlr.methods._smv import contributions
from bmlr.training.loader import planned_requests
from method_loop import MethodLoop, assert_any_order, assert_half_precision, assert_resumes
from zoo import make_batch, make_model


def make_loop(method, modalities=2, samples=30, present=None, fusion="own", mute=False):
    batch = make_batch(modalities, samples, dtype=torch.float64, present=present)
    if mute:
        batch.inputs["video"] *= 0
    return MethodLoop(make_model(modalities, fusion, dtype=torch.float64, batch_norm=True), method, batch)


# A second version in plain Python, from the specification


def literal_contributions(loop, batch, sample):
    """Shapley values of one sample by orders of arrival, from predictions of features with zeros in them."""
    names = list(loop.model.modalities)
    has = {u: batch.present is None or u not in batch.present or bool(batch.present[u][sample]) for u in names}
    loop.model.eval()
    with torch.no_grad():
        features = loop.model(batch.inputs, batch.present).features

        def benefit(subset):
            kept = {u: z if u in subset else torch.zeros_like(z) for u, z in features.items()}
            guess = int(loop.model.fusion.fused(kept)[sample].argmax())
            return sum(has[u] for u in subset) if subset and guess == int(batch.targets[sample]) else 0

        orders = list(itertools.permutations(names))
        return {
            u: sum(benefit(o[: o.index(u) + 1]) - benefit(o[: o.index(u)]) for o in orders) / len(orders) for u in names
        }


def passes(loop, epoch):
    return {p.tag: p.indices for p in loop.method.start_epoch(loop.context(epoch)).passes}


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("absent", [False, True])
def test_copies_of_samples_agree_with_a_literal_version(modalities, absent):
    present = {"audio": torch.arange(30) % 3 > 0} if absent else None
    loop = make_loop(SampleSMV(warmup=1), modalities, present=present)
    loop.run([0])
    found = passes(loop, 1)
    expected = {u: [] for u in loop.model.modalities}
    values = [literal_contributions(loop, loop.train, i) for i in range(30)]
    for i, phi in enumerate(values):
        for u in expected:
            if absent and u == "audio" and not present["audio"][i]:
                assert phi[u] == 0
                continue
            copies = 1 if 0.4 < phi[u] < 0.9 else 2 if -0.1 < phi[u] < 0.4 else 3 if phi[u] < -0.1 else 0
            expected[u] += [i] * copies
    assert found == {"all": None, **{f"keep:{u}": tuple(rows) for u, rows in expected.items() if rows}}
    if not absent:
        means = [sum(v[u] for v in values) / 30 for u in sorted(expected)]
        torch.testing.assert_close(loop.method.contributions, torch.tensor(means, dtype=torch.float64))


@pytest.mark.parametrize(
    ("right", "phi"),
    [
        ((True, True, True), (1.0, 1.0)),
        ((True, False, True), (1.5, 0.5)),
        ((True, False, False), (0.5, -0.5)),
        ((False, False, True), (1.0, 1.0)),
        ((False, False, False), (0.0, 0.0)),
        ((True, True, False), (0.0, 0.0)),
    ],
)
def test_contributions_of_two_modalities(right, phi):
    output = make_model()(make_batch(batch_size=1).inputs)
    answers = {("audio",): right[0], ("video",): right[1], ("audio", "video"): right[2]}
    logits = lambda keep: torch.tensor([[1.0, 0.0, 0.0]] if answers[tuple(sorted(keep))] else [[0.0, 1.0, 0.0]])
    output.subset_logits = logits
    assert contributions(output, torch.tensor([0])).tolist() == [list(phi)]


@pytest.mark.parametrize("curve", ["linear", "tanh", "square"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_modality_level_draws_for_the_largest_gap(modalities, curve):
    loop = make_loop(ModalitySMV(warmup=1, fraction=0.5, alpha=3.0, curve=curve), modalities, mute=True)
    loop.run([0] * 4)
    plan = loop.method.start_epoch(loop.context(1))
    assert plan.order == "shuffled"
    parts = []
    for batch in loop.context(1).shuffled_batches(0):
        parts += [literal_contributions(loop, batch, i) for i in range(len(batch))]
        if len(parts) >= 15:
            break
    gaps = {u: 1 - sum(p[u] for p in parts) / len(parts) for u in loop.model.modalities}
    d = 2 / 3 * (max(gaps.values()) - min(gaps.values()))
    share = {"linear": 3 * d, "tanh": math.tanh(3 * d), "square": 3 * d**1.5}[curve]
    everyone, copies = plan.passes
    assert (everyone.tag, everyone.indices) == ("all", None)
    assert copies.tag == f"keep:{max(gaps, key=gaps.get)}"
    assert len(copies.indices) == int(share * 30 + 1e-9)
    assert set(copies.indices) <= set(range(30))


def test_draws_follow_the_seeds_of_method_and_run():
    def drawn(seed, run):
        loop = make_loop(ModalitySMV(warmup=1, alpha=9.0, seed=seed), mute=True)
        loop.seed = run
        loop.run([0] * 4)
        (rows,) = [rows for tag, rows in passes(loop, 1).items() if tag != "all"]
        return rows

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(1, 0)
    assert drawn(0, 0) != drawn(0, 1)


def test_a_copy_trains_one_encoder_on_zeros_for_the_others():
    loop = make_loop(SampleSMV(warmup=0), 3, fusion="concat")
    loop.method.start_epoch(loop.context(0))
    batch = loop.take(torch.tensor([3, 3, 5, 9]), "keep:video")
    runs = []
    for u, encoder in loop.model.encoders.items():
        encoder.register_forward_hook(lambda *_, u=u: runs.append(u))
    losses = loop.method.compute_losses(loop.model, batch)
    loop.method.backward(losses, loop.model)
    assert runs == ["video"]
    trained = {u for u, e in loop.model.encoders.items() if any(p.grad is not None for p in e.parameters())}
    assert trained == {"video"}
    video = loop.model.encoders["video"](batch.inputs["video"]).detach()
    weight, bias = loop.model.fusion.linear.weight, loop.model.fusion.linear.bias
    logits = video @ weight[:, 7:12].T + bias  # audio has the first seven columns
    expected = torch.nn.functional.cross_entropy(logits, batch.targets)
    torch.testing.assert_close(losses.terms["fused"], expected)
    assert set(losses.terms) == {"fused"}


def test_warm_up_and_no_strength_are_joint_training_and_the_look_changes_nothing():
    for method, epoch in ((SampleSMV(warmup=2), 1), (ModalitySMV(warmup=0, alpha=0.0), 0)):
        loop, joint = make_loop(method), make_loop(Joint())
        loop.run([epoch])
        joint.run([epoch])
        for name, value in joint.model.state_dict().items():
            assert torch.equal(loop.model.state_dict()[name], value)
    for method in (SampleSMV(warmup=0), ModalitySMV(warmup=0)):
        loop = make_loop(method)
        loop.model.train()
        state = copy.deepcopy(loop.model.state_dict())
        method.start_epoch(loop.context(0))
        assert loop.model.encoders["audio"].training
        assert all(torch.equal(value, state[name]) for name, value in loop.model.state_dict().items())


def test_samples_without_a_target_and_modalities_nobody_has_get_no_copies():
    present = {"video": torch.zeros(30, dtype=torch.bool)}
    for method in (SampleSMV(warmup=0), ModalitySMV(warmup=0, alpha=9.0)):
        loop = make_loop(method, present=present)
        loop.model.task = bmlr.tasks.Multiclass(3, ignore_index=-100)
        loop.train.targets[::2] = -100
        found = passes(loop, 0)
        assert "keep:video" not in found
        if isinstance(method, SampleSMV):
            assert all(i % 2 for i in found["keep:audio"])
    loop.train.targets[:] = -100
    assert passes(loop, 0) == {"": None}


def test_repeated_samples_come_as_often_in_both_loops():
    """Counted in the requests of the trainer, and in the batches of the balancer."""
    loop = make_loop(SampleSMV(warmup=0))
    plan = loop.method.start_epoch(loop.context(0))
    wanted = {p.tag: sorted(p.indices or range(30)) for p in plan.passes}
    assert any(len(set(rows)) < len(rows) for rows in wanted.values())
    for world in (1, 2):
        found = {}
        for rank in range(world):
            for request in planned_requests(plan, 30, 4, seed=0, epoch=0, rank=rank, world_size=world):
                found.setdefault(request.tag, []).extend(request.indices)
        for tag, rows in wanted.items():
            surplus = -len(rows) % world  # every process takes part in every step
            assert len(found[tag]) == len(rows) + surplus
            assert surplus or sorted(found[tag]) == rows
    whole = loop.train
    pairs = [({u: x[i] for u, x in whole.inputs.items()}, whole.targets[i]) for i in range(30)]
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=1e-9)
    balancer = bmlr.Balancer(loop.model, SampleSMV(warmup=0), optimizer, max_epochs=1)
    rows = {round(float(x), 9): i for i, x in enumerate(whole.inputs["audio"][:, 0])}
    found = {}
    for batch in balancer.epoch(DataLoader(pairs, 4)):
        balancer.step(batch)
        found.setdefault(batch.tag, []).extend(rows[round(float(x), 9)] for x in batch.inputs["audio"][:, 0])
    assert {tag: sorted(samples) for tag, samples in found.items()} == wanted


def test_a_loader_whose_samples_cannot_be_chosen_is_refused():
    batch = make_batch()
    for method in (SampleSMV(warmup=0), ModalitySMV(warmup=0)):
        model = make_model()
        balancer = bmlr.Balancer(model, method, torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=1)
        with pytest.raises(ValueError, match=rf"{type(method).__name__} needs `indices`.* a torch DataLoader"):
            list(balancer.epoch([(batch.inputs, batch.targets)]))
        with pytest.raises(RuntimeError, match="let bmlr.Balancer run the loop"):
            method.start_epoch(EpochContext(0, 1, model, num_train=8))


def test_it_resumes_exactly_in_any_order_and_in_half_precision():
    assert_resumes(lambda: ModalitySMV(warmup=1, alpha=3.0), 2)
    assert_any_order(lambda: SampleSMV(warmup=0), ("audio", "video", "text"), "keep:video")
    assert_half_precision(SampleSMV, 3, "keep:audio")
