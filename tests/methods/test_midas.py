import copy
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import MIDAS, EpochContext, UniformBaseline
from bmlr.tasks import Multiclass, MultiLabel
from method_loop import MethodLoop, assert_resumes
from zoo import make_batch, make_encoder, make_model


def make(modalities=2, fusion="concat", batch_size=7, **parameters):
    model = make_model(modalities, fusion, dtype=torch.float64)
    method = MIDAS(**{"warmup": 0, **parameters})
    torch.manual_seed(1)
    method.setup(model)
    return model, method, make_batch(modalities, batch_size, dtype=torch.float64, seed=4)


def cosine(x, y):
    return (x @ y / (x.norm() * y.norm())).item()


def literal(method, model, batch, alpha, sources):
    """Losses and the next α, sample by sample, for given sources (a row per modality, by sorted name)."""
    output, y = model(batch.inputs), batch.targets.tolist()
    names, heads = sorted(output.features), method.heads
    size, z = len(y), output.features
    aligned = sum(-output.logits[i].log_softmax(0)[c] for i, c in enumerate(y)) / size
    unimodal = sum(-heads[u](z[u][i]).log_softmax(0)[c] for u in names for i, c in enumerate(y)) / size
    values, shares, predicted = [], [], []
    for k in range(len(sources[0])):
        i, source = k % size, {u: rows[k] for u, rows in zip(names, sources, strict=True)}
        confidence = {u: heads[u](z[u][j]).softmax(0)[y[j]].item() for u, j in source.items()}
        share = {u: c / sum(confidence.values()) for u, c in confidence.items()}
        logits = model.fusion({u: z[u][source[u]][None] for u in z})[0]
        p = logits.softmax(0)
        replaced = [cosine(z[u][i], z[u][j]) for u, j in source.items() if j != i]
        s = sum(replaced) / len(replaced)
        hardness = {"shifted": 1 + (s + 1) / 2, "cosine": max(0.0, s), "none": 1.0}[method.hardness]
        values.append(hardness * sum(alpha[u] * share[u] * -p[y[j]].log() for u, j in source.items()))
        shares.append(share)
        total = sum(p[y[j]].item() for j in source.values())
        predicted.append({u: p[y[j]].item() / total for u, j in source.items()})
    mean = lambda rows, u: sum(row[u] for row in rows) / len(rows)
    weakest = min(names, key=lambda u: mean(shares, u))
    difference = mean(shares, weakest) - mean(predicted, weakest)
    if method.update == "sign":
        difference = math.copysign(1.0, difference)
    following = dict.fromkeys(names, 1.0)
    following[weakest] = max(1.0, alpha[weakest] + method.step_size * difference)
    return aligned + unimodal + method.weight * sum(values) / len(values), following


@pytest.mark.parametrize("settings", [{}, {"hardness": "cosine", "update": "sign"}, {"hardness": "none"}])
@pytest.mark.parametrize(("modalities", "fusion"), [(2, "concat"), (3, "own")])
def test_three_steps_agree_with_algorithm_1(modalities, fusion, settings):
    model, method, batch = make(modalities, fusion, weight=2.0, step_size=3.0, **settings)
    other, other_method = copy.deepcopy((model, method))
    loop = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
    literal_loop = torch.optim.SGD([*other.parameters(), *other_method.parameters()], lr=0.1)
    alpha = dict.fromkeys(sorted(model.modalities), 1.5)
    method.alpha.fill_(1.5)
    for _ in range(3):
        sources = method._sources(model(batch.inputs), batch.targets)[0].tolist()
        expected, following = literal(other_method, other, batch, alpha, sources)
        losses = method(model(batch.inputs), batch.targets)
        torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=1e-12)
        for optimizer, loss in ((loop, losses.total), (literal_loop, expected)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        alpha = following
        assert method.alpha.tolist() == pytest.approx(list(alpha.values()), rel=1e-12)
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_the_weakest_modality_gains_weight_where_the_model_gives_it_too_little():
    method = make(3, step_size=2.0)[1]
    method.alpha.fill_(1.25)
    shares = torch.tensor([[0.5, 0.3, 0.9], [0.2, 0.2, 0.0], [0.3, 0.5, 0.1]])
    predicted = torch.tensor([[0.5, 0.3, 0.9], [0.1, 0.1, 0.1], [0.4, 0.6, 0.0]])
    method._update_alpha(shares, predicted, torch.tensor([True, True, False]))
    assert method.alpha.tolist() == pytest.approx([1.0, 1.25 + 2 * 0.1, 1.0])
    method._update_alpha(predicted, shares, torch.tensor([True, True, False]))
    assert method.alpha.tolist() == pytest.approx([1.0, 1.45 - 2 * 0.1, 1.0])
    method._update_alpha(predicted, shares + 1, torch.tensor([True, True, False]))
    assert method.alpha.tolist() == [1, 1, 1]


def test_two_modalities_make_both_swaps_with_a_partner_of_another_class():
    model, method, batch = make(batch_size=9)
    sources, usable = method._sources(model(batch.inputs), batch.targets)
    (first, second), own = sources.view(2, 2, 9).unbind(1), torch.arange(9)
    assert torch.equal(first[0], own)
    assert torch.equal(second[1], own)
    assert torch.equal(first[1], second[0])
    assert bool((batch.targets[first[1]] != batch.targets).all())
    assert bool(usable.all())
    method.step = 1
    assert not torch.equal(method._sources(model(batch.inputs), batch.targets)[0], sources)


def test_three_modalities_come_from_three_sources_in_turn():
    model, method, batch = make(3, batch_size=9)
    sources = method._sources(model(batch.inputs), batch.targets)[0].view(3, 3, 9)  # modality, rotation, sample
    own = torch.arange(9)
    for modality in range(3):
        is_own = [torch.equal(sources[modality, rotation], own) for rotation in range(3)]
        assert sum(is_own) == 1
    replaced = sources != own
    assert bool((replaced.sum(0) == 2).all())
    classes = batch.targets[sources]
    assert bool((classes[replaced] != batch.targets.expand(3, 3, 9)[replaced]).all())


@pytest.mark.parametrize("targets", [torch.tensor([1]), torch.tensor([2, 2, 2, 2])])
def test_without_another_class_there_is_nothing_to_swap(targets):
    model, method, batch = make(batch_size=len(targets))
    baseline = UniformBaseline(weight=1.0)
    baseline.setup(model)
    baseline.heads.load_state_dict(method.heads.state_dict())
    method.alpha.fill_(1.5)
    output = model(batch.inputs)
    losses = method(output, targets)
    assert losses.terms["misaligned"].item() == 0
    assert method.alpha.tolist() == [1.5, 1.5]
    torch.testing.assert_close(losses.total, baseline(output, targets).total)


def test_samples_without_a_modality_or_a_target_are_not_swapped():
    torch.manual_seed(0)
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, Multiclass(3, ignore_index=-100)).double()
    method = MIDAS(warmup=0)
    method.setup(model)
    batch = make_batch(2, 8, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, -100, 0, 1, 2, 0])
    present = {"video": torch.tensor([True, True, False, True, True, True, True, True])}
    usable = torch.tensor([0, 1, 4, 5, 6, 7])
    output = model(batch.inputs, present)
    sources, flags = method._sources(output, targets)
    assert flags.nonzero().flatten().tolist() == [*usable.tolist(), *(usable + 8).tolist()]
    assert set(sources[:, flags].flatten().tolist()) <= set(usable.tolist())
    whole = model(batch.inputs)
    part = bmlr.Batch({u: x[usable] for u, x in batch.inputs.items()}, targets[usable])
    places = torch.full((8,), -1).scatter_(0, usable, torch.arange(6))
    expected, following = literal(
        method, model, part, dict.fromkeys(("audio", "video"), 1.0), places[sources[:, flags]]
    )
    aligned = F.cross_entropy(model(part.inputs).logits, part.targets)
    unimodal = sum(F.cross_entropy(method.heads[u](whole.features[u][usable]), part.targets) for u in whole.features)
    term = method(output, targets).terms["misaligned"]
    torch.testing.assert_close(term, expected - aligned - unimodal)
    assert method.alpha.tolist() == pytest.approx(list(following.values()))


def test_several_labels_are_swapped_as_a_set_and_shared_one_by_one():
    torch.manual_seed(0)
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, MultiLabel(2)).double()
    method = MIDAS(warmup=0, hardness="none")
    method.setup(model)
    batch, targets = make_batch(2, 3, dtype=torch.float64), torch.tensor([[0, 1], [0, 1], [1, 1]])
    output = model(batch.inputs)
    sources = method._sources(output, targets)[0].tolist()
    assert sources[1][:3] == [2, 2, sources[1][2]]
    total = 0.0
    for a, v in zip(*sources, strict=True):
        mixed = model.fusion({"audio": output.features["audio"][a][None], "video": output.features["video"][v][None]})
        for k in range(2):
            sign = {j: 1 if targets[j, k] else -1 for j in (a, v)}
            confidence = [
                (sign[j] * method.heads[u](output.features[u][j])[k]).sigmoid().item()
                for u, j in (("audio", a), ("video", v))
            ]
            for j, c in zip((a, v), confidence, strict=True):
                total += c / sum(confidence) * -(sign[j] * mixed[0, k]).sigmoid().log().item() / 2
    assert method(output, targets).terms["misaligned"].item() == pytest.approx(total / 6)


def test_the_warm_up_trains_heads_and_encoders_alone_and_alpha_starts_over_in_every_epoch():
    model, method, batch = make(warmup=2, batch_size=18, step_size=5.0)
    loop = MethodLoop(model, method, batch)
    before = copy.deepcopy(model)
    loop.run([0, 1])
    terms = method(model(batch.inputs), batch.targets).terms
    assert set(terms) == {"audio", "video", "fused"}
    assert not terms["fused"].requires_grad
    for one, two in zip(model.fusion.parameters(), before.fusion.parameters(), strict=True):
        assert torch.equal(one, two)
    loop.run([2])
    assert not torch.equal(next(model.fusion.parameters()), next(before.fusion.parameters()))
    method.alpha.fill_(2)
    method.start_epoch(EpochContext(3, 4, model))
    assert method.alpha.tolist() == [1, 1]


def test_evaluation_leaves_weights_and_partners_alone():
    model, method, batch = make(step_size=5.0)
    method.eval()
    method(model(batch.inputs), batch.targets)
    assert method.alpha.tolist() == [1, 1]
    assert method.step == 0


@pytest.mark.parametrize("modalities", [2, 3])
def test_resumes_bit_for_bit_over_the_end_of_the_warm_up(modalities):
    assert_resumes(lambda: MIDAS(warmup=1, step_size=1.0), modalities)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"weight": -1.0}, "weight"), ({"warmup": 1.5}, "warmup"), ({"hardness": "soft"}, "hardness")],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        MIDAS(**parameters)
