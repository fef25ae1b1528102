import copy
import dataclasses
import math

import pytest
import torch
from torch.utils.data import DataLoader

import bmlr
from bmlr.methods import PMR, EpochContext, Joint
from method_loop import MethodLoop, assert_any_order, assert_half_precision, assert_resumes
from zoo import make_batch, make_model


def make_loop(modalities=2, samples=18, present=None, **parameters):
    method = PMR(**{"fraction": 0.5, **parameters})
    batch = make_batch(modalities, samples, dtype=torch.float64, present=present)
    return MethodLoop(make_model(modalities, dtype=torch.float64), method, batch)


# A second version in plain Python, from the specification


def literal_prototypes(loop, epoch, old, known):
    """Class means over the first half of the shuffled samples, moved by momentum from the third epoch on."""
    method, samples, seen = loop.method, [], 0
    loop.model.eval()
    for batch in loop.context(epoch).shuffled_batches(0):
        if seen >= method.fraction * len(loop.train):
            break
        features = loop.model(batch.inputs).features
        for i, y in enumerate(batch.targets.tolist()):
            samples.append((y, {u: z[i].tolist() for u, z in features.items()}))
        seen += len(batch)
    loop.model.train()
    new = copy.deepcopy(old)
    for u in loop.model.modalities:
        for k in range(3):
            rows = [z[u] for y, z in samples if y == k]
            if not rows:
                continue
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            share = method.momentum if epoch > 1 and known[u][k] else 0.0
            new[u][k] = [(1 - share) * a + share * b for a, b in zip(mean, old[u][k], strict=True)]
            known[u][k] = True
    return new


def softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def literal_terms(features, targets, prototypes, method, epoch):
    """α β PCE − μ γ H of each modality."""
    probabilities = {
        u: [softmax([-math.dist(row, c) for c in prototypes[u]]) for row in z.tolist()] for u, z in features.items()
    }
    scores = {u: sum(p[y] for p, y in zip(rows, targets, strict=True)) for u, rows in probabilities.items()}
    leader = max(scores, key=scores.get)
    beta = {u: min(max(scores[leader] / s - 1, 0), 1) for u, s in scores.items()}
    if method.form == "official":
        beta = {u: float(u != leader) for u in scores}
    terms = {}
    for u, rows in probabilities.items():
        loss = sum(-math.log(p[y]) for p, y in zip(rows, targets, strict=True)) / len(rows)
        entropy = sum(-x * math.log(x) for p in rows for x in p) / len(rows)
        on = method.form == "paper" and epoch < method.entropy_epochs and u == leader
        terms[u] = method.alpha * beta[u] * loss - (method.entropy_weight * max(beta.values()) * entropy if on else 0)
    return terms, {u: s / len(targets) for u, s in scores.items()}


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_four_epochs_agree_with_a_literal_version(modalities, form):
    loop = make_loop(modalities, form=form, alpha=1.5, momentum=0.3, entropy_weight=0.05, entropy_epochs=2)
    widths = loop.model.fusion.feature_dims
    prototypes, known = ({u: [v] * 3 for u in widths} for v in (None, False))
    prototypes = {u: [[0.0] * d] * 3 for u, d in widths.items()}
    for epoch in range(4):
        prototypes = literal_prototypes(loop, epoch, prototypes, known)
        plan = loop.method.start_epoch(loop.context(epoch))
        for batch, _ in loop.batches(plan, epoch):
            for u in widths:
                found = loop.method.prototypes[u].values
                torch.testing.assert_close(found, torch.tensor(prototypes[u], dtype=torch.float64))
            features = {u: z.detach() for u, z in loop.model(batch.inputs).features.items()}
            expected, scores = literal_terms(features, batch.targets.tolist(), prototypes, loop.method, epoch)
            losses = loop.method.compute_losses(loop.model, batch)
            loop.method.discard_losses()
            assert {u: float(losses.terms[u].detach()) for u in expected} == pytest.approx(
                expected, rel=1e-9, abs=1e-12
            )
            assert {u: float(losses.logs[f"score_{u}"]) for u in scores} == pytest.approx(scores)
            loop.step(batch)
        loop.method.end_epoch(loop.context(epoch))


def test_gradients_reach_the_features_only_and_follow_the_distances():
    loop = make_loop(entropy_weight=0.0)
    loop.method.start_epoch(loop.context(0))
    output = loop.model(loop.train.inputs)
    terms = loop.method(output, loop.train.targets).terms
    (behind,) = [u for u in ("audio", "video") if float(terms[u].detach())]
    assert torch.autograd.grad(terms[behind], loop.model.fusion.parameters(), retain_graph=True, allow_unused=True) == (
        None, None,
    )  # fmt: skip
    (found,) = torch.autograd.grad(terms[behind], output.features[behind], retain_graph=True)
    z, centres = output.features[behind].detach(), loop.method.prototypes[behind].values
    difference = z[:, None] - centres  # d s_k / d z = −(z − c_k) / ‖z − c_k‖
    unit = difference / difference.norm(dim=2, keepdim=True)
    p = (-difference.norm(dim=2)).softmax(1)
    wrong = torch.nn.functional.one_hot(loop.train.targets, 3) - p
    scores = {u: float(loop.method(output, loop.train.targets).logs[f"score_{u}"]) for u in ("audio", "video")}
    beta = min(max(scores.values()) / scores[behind] - 1, 1)
    torch.testing.assert_close(found, beta * (wrong[..., None] * unit).sum(1) / len(z))


@pytest.mark.parametrize(
    ("scores", "pulls", "spreads"),
    [
        ([0.2, 0.3], [0.5, 0.0], [0.0, 0.5]),
        ([0.9, 0.3], [0.0, 1.0], [1.0, 0.0]),
        ([0.4, 0.4], [0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.5], [1.0, 0.0], [0.0, 1.0]),
        ([math.nan, 0.5], [0.0, 0.0], [0.0, 0.0]),
        ([0.3, 0.2, 0.15], [0.0, 0.5, 1.0], [1.0, 0.0, 0.0]),
    ],
)
def test_coefficients(scores, pulls, spreads):
    found = PMR().coefficients(torch.tensor(scores))
    torch.testing.assert_close(found[0], torch.tensor(pulls))
    torch.testing.assert_close(found[1], torch.tensor(spreads))
    binary = PMR(form="official").coefficients(torch.tensor(scores))[0]
    assert torch.equal(binary, (torch.tensor(pulls) > 0).float())


def test_without_weights_or_after_the_last_epoch_it_is_joint_training():
    for parameters, epoch in (({"alpha": 0.0, "entropy_weight": 0.0}, 0), ({"last_epoch": 1}, 2)):
        loop, joint = (
            make_loop(**parameters),
            MethodLoop(make_model(dtype=torch.float64), Joint(), make_batch(2, 18, dtype=torch.float64)),
        )
        loop.run([epoch])
        joint.run([epoch])
        for name, value in joint.model.state_dict().items():
            assert torch.equal(loop.model.state_dict()[name], value)


def test_a_class_missing_in_the_share_keeps_its_prototype_and_is_looked_for_at_first():
    loop = make_loop(fraction=0.0)  # nothing is needed once every class is known
    loop.train = dataclasses.replace(loop.train, targets=torch.tensor([0] * 16 + [1] * 2))
    loop.method.start_epoch(loop.context(0))
    audio = loop.method.prototypes["audio"]
    assert audio.is_known.tolist() == [True, True, False]
    assert not audio.values[2].any()
    loop.model.eval()
    z = loop.model(loop.train.inputs).features["audio"].detach()
    for k in (0, 1):  # the whole split was needed, since nobody has class 2
        torch.testing.assert_close(audio.values[k], z[loop.train.targets == k].mean(0))
    loop.train.targets[:] = torch.arange(18) % 3
    loop.method.start_epoch(loop.context(1))
    assert audio.is_known.all()
    before = audio.values.clone()
    loop.method.start_epoch(loop.context(2))
    assert torch.equal(audio.values, before)


def test_samples_without_a_modality_or_a_target_do_not_count():
    present = {"audio": torch.arange(18) % 3 > 0}
    loop = make_loop(samples=18, present=present, fraction=1.0)
    loop.model.task = bmlr.tasks.Multiclass(3, ignore_index=-100)
    loop.train.targets[5] = -100
    loop.method.start_epoch(loop.context(0))
    counted = present["audio"] & (loop.train.targets >= 0)
    loop.model.eval()
    output = loop.model(loop.train.inputs, present)
    z, audio = output.features["audio"].detach(), loop.method.prototypes["audio"]
    for k in range(3):
        torch.testing.assert_close(audio.values[k], z[counted & (loop.train.targets == k)].mean(0))
    losses = loop.method(output, loop.train.targets)
    p = audio.similarities(z).softmax(1)[counted]
    score = p.gather(1, loop.train.targets[counted, None]).mean()
    torch.testing.assert_close(losses.logs["score_audio"], score)


def test_the_look_at_the_data_changes_nothing_in_the_model():
    loop = make_loop()
    loop.model.encoders["audio"].eval()
    modes, state = [m.training for m in loop.model.modules()], copy.deepcopy(loop.model.state_dict())
    loop.method.start_epoch(loop.context(0))
    assert [m.training for m in loop.model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in loop.model.state_dict().items())


def test_a_loop_without_data_between_epochs_says_what_to_give():
    loop = make_loop()
    with pytest.raises(RuntimeError, match="give EpochContext .*`shuffled_batches`, or let bmlr.Balancer"):
        loop.method.start_epoch(EpochContext(0, 2, loop.model))
    with pytest.raises(RuntimeError, match=r"PMR has no prototypes: call `method\.setup\(model\)`"):
        PMR()(loop.model(loop.train.inputs), loop.train.targets)


def test_a_loader_without_a_length_is_gone_through_as_a_whole():
    batch = make_batch(2, 20)
    pairs = [({u: x[i] for u, x in batch.inputs.items()}, int(batch.targets[i])) for i in range(20)]
    for loader, rows in ((DataLoader(pairs, 4), 8), (list(DataLoader(pairs, 4)), 20)):
        model = make_model()
        method, optimizer = PMR(fraction=0.4), torch.optim.SGD(model.parameters(), lr=0.1)
        balancer, seen = bmlr.Balancer(model, method, optimizer, max_epochs=1), []
        hook = model.encoders["audio"].register_forward_hook(lambda *a, seen=seen: seen.append(len(a[2])))
        next(balancer.epoch(loader))
        hook.remove()
        assert sum(seen) == rows


def test_it_resumes_exactly_in_any_order_and_in_half_precision():
    assert_resumes(lambda: PMR(fraction=0.5), 2)
    assert_any_order(PMR, ("audio", "video", "text"))
    assert_half_precision(PMR, 3)
