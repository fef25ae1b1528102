import copy
import math

import pytest
import torch

import bmlr
from bmlr.methods import AMCo, EpochContext
from method_loop import MethodLoop
from zoo import make_batch, make_model


def log_softmax(values):
    top = max(values)
    return [x - top - math.log(sum(math.exp(y - top) for y in values)) for x in values]


def literal(output, targets, method, kept):
    """Shares and terms in plain Python, but for the fusion."""
    names, present = list(output.features), output.present or {}
    logits = {u: values.tolist() for u, values in output.unimodal_logits.items()}
    held = [[u for u in names if u not in present or present[u][i]] for i in range(len(targets))]
    shares = dict.fromkeys(names, 0.0)
    terms = dict.fromkeys(names, 0.0)
    for i, y in enumerate(targets.tolist()):
        joint = [math.exp(x) for x in log_softmax([x for u in held[i] for x in logits[u][i]])]
        for position, u in enumerate(held[i]):
            shares[u] += sum(joint[3 * position : 3 * position + 3]) / len(targets)
            terms[u] -= log_softmax(logits[u][i])[y] * method.weight / sum(u in h for h in held)
    leader = max(shares, key=shares.get)
    z = {u: values.detach().clone() for u, values in output.features.items()}
    for i in range(len(targets)) if shares[leader] >= method.threshold else ():
        if leader in held[i] and len(held[i]) > 1:
            width = z[leader].shape[1]
            for k in range(width):
                z[leader][i, k] *= width / len(kept[leader]) if k in kept[leader] else 0.0
    fused = output.fusion(z).tolist()
    terms["fused"] = -sum(log_softmax(row)[y] for row, y in zip(fused, targets.tolist(), strict=True)) / len(targets)
    return shares, terms


def kept_features(method, model):
    """Features that the next mask keeps."""
    generator = method.generator(method.step)
    kept = {}
    for u in sorted(model.modalities):
        d = model.fusion.feature_dims[u]
        ranks = torch.randperm(d, generator=generator).tolist()
        kept[u] = [k for k in range(d) if ranks[k] >= int(method.mask_rate * d)]
    return kept


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("lacking", [False, True])
def test_losses_over_steps_are_those_of_a_literal_version(modalities, lacking):
    present = {"video": torch.arange(8) % 3 > 0, "audio": torch.arange(8) % 4 != 1} if lacking else None
    batch = make_batch(modalities, dtype=torch.float64, present=present)
    method = AMCo(threshold=0.2, ramp=0.5, weight=0.7, seed=3)
    loop = MethodLoop(make_model(modalities, dtype=torch.float64), method, batch, max_epochs=8)
    masked = []
    for epoch in (0, 1, 2, 7):
        method.start_epoch(loop.context(epoch))
        kept = kept_features(method, loop.model)
        masked.append(7 - len(kept["audio"]))
        shares, terms = literal(loop.model(batch.inputs, present), batch.targets, method, kept)
        state = copy.deepcopy(method.state_dict())
        losses = method.compute_losses(loop.model, batch)
        assert losses.terms.keys() == terms.keys()
        for name, value in terms.items():
            assert losses.terms[name].item() == pytest.approx(value, abs=1e-9), (epoch, name)
        for name, value in shares.items():
            assert losses.logs[f"dependence_{name}"].item() == pytest.approx(value, abs=1e-9)
        method.load_state_dict(state)
        loop.step(batch)
    assert masked == [0, int(7 * 0.9 * math.sin(math.pi / 8)), int(7 * 0.9 * math.sin(math.pi / 4)), 6]


def test_the_mask_is_drawn_for_every_batch_and_run():
    model, method = make_model(), AMCo(ramp=0.0, rate=0.5)
    masks = []
    for run_seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        method.run_seed, method.step = run_seed, step
        masks.append(tuple(kept_features(method, model)["audio"]))
        output = model(make_batch().inputs)
        shares = method.dependence(output)
        leader = list(model.modalities)[int(shares.argmax())]
        features = method._mask(output, shares).features
        changed = [u for u in features if not torch.equal(features[u], output.features[u])]
        assert changed == [leader]
    assert len(set(masks)) == 3
    assert masks[0] == masks[3]


def test_without_a_mask_or_a_dependent_modality_it_is_joint_training_with_unimodal_losses():
    model, batch = make_model(3), make_batch(3)
    for method in (AMCo(rate=0.0, ramp=0.0), AMCo(threshold=1.0, ramp=0.0), AMCo().eval()):
        output = model(batch.inputs)
        terms = method(output, batch.targets).terms
        assert torch.equal(terms["fused"], output.task.loss(output.logits, batch.targets))
        for u, values in output.unimodal_logits.items():
            assert torch.equal(terms[u], output.task.loss(values, batch.targets))


def test_at_rate_one_the_dependent_modality_is_zero_where_another_is_there():
    present = {"video": torch.arange(8) > 0}
    model, batch = make_model(), make_batch(present=present)
    method = AMCo(rate=1.0, ramp=0.0)
    output = model(batch.inputs, present)
    features = method._mask(output, torch.tensor([0.9, 0.1])).features
    assert torch.equal(features["audio"][0], output.features["audio"][0])
    assert not features["audio"][1:].any()
    assert torch.equal(features["video"], output.features["video"])


def test_the_rate_follows_the_fraction_of_the_training():
    method, model = AMCo(ramp=0.3), make_model()
    rates = []
    for epoch in (0, 15, 30, 99):
        method.start_epoch(EpochContext(epoch, 100, model))
        rates.append(method.mask_rate)
    assert rates == pytest.approx([0, 0.9 * math.sqrt(0.5), 0.9, 0.9])


@pytest.mark.parametrize("name", ["threshold", "ramp", "rate", "weight", "seed"])
def test_bad_parameters(name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        bmlr.methods.AMCo(**{name: -1})
