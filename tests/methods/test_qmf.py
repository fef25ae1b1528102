"""QMF against a literal version, its history, and its reductions."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import QMF, EpochContext
from bmlr.methods._support import apply_heads
from method_loop import MethodLoop, stored, take
from zoo import make_batch, make_model


def started(method, model, num_train, epochs=3):
    torch.manual_seed(0)
    method.setup(model)
    method.start_epoch(EpochContext(0, epochs, model, num_train))
    return method


def tagged(batch):
    return bmlr.Batch(batch.inputs, batch.targets, batch.present, batch.indices, "qmf")


def literal(logits, targets, indices, present, history, *, weight, margin):
    """Losses of a batch, one sample at a time in plain Python; ``history`` grows."""
    size, terms = len(targets), {}
    rows = {name: values.tolist() for name, values in logits.items()}
    energy = {name: [math.log(sum(math.exp(x) for x in row)) for row in values] for name, values in rows.items()}
    confidence = {name: [2 * e for e in values] for name, values in energy.items()}
    fused = []
    for i in range(size):
        columns = range(len(next(iter(rows.values()))[i]))
        f = [sum(confidence[u][i] * rows[u][i][k] for u in rows if present[u][i]) for k in columns]
        fused.append(math.log(sum(math.exp(x) for x in f)) - f[targets[i]])
    terms["fused"] = sum(fused) / size
    for name in rows:
        losses = [energy[name][i] - rows[name][i][targets[i]] for i in range(size)]
        here = [i for i in range(size) if present[name][i]]
        terms[name] = sum(losses[i] for i in here) / max(len(here), 1)
        for i in here:
            history[name][indices[i]] += losses[i]
        low, high = min(history[name]), max(history[name])
        hardness = [(history[name][j] - low) / (high - low) for j in indices]
        costs = []
        for i in range(size):
            j = (i + 1) % size
            if not (present[name][i] and present[name][j]):
                continue
            sign = (hardness[i] > hardness[j]) - (hardness[i] < hardness[j])
            slack = abs(hardness[i] - hardness[j]) * (1 if margin == "required" else -1)
            costs.append(max(0.0, sign * (confidence[name][i] - confidence[name][j]) + slack))
        terms[f"{name}_ranking"] = weight * sum(costs) / max(len(costs), 1)
    return terms


@pytest.mark.parametrize("margin", ["required", "allowed"])
@pytest.mark.parametrize(("modalities", "lacks"), [(2, False), (3, True)])
def test_agrees_with_a_literal_version_over_several_steps(modalities, lacks, margin):
    model = make_model(modalities, dtype=torch.float64)
    present = {"video": torch.arange(12) % 4 != 1} if lacks else None
    whole = make_batch(modalities, 12, dtype=torch.float64, present=present)
    method = started(QMF(weight=0.7, margin=margin, temperature=0.5), model, 15)  # three samples are never trained
    method.history = method.history.double()
    history = {name: [0.0] * 15 for name in model.modalities}
    rankings = []
    for rows in ([0, 3, 5, 7, 9], [1, 2, 4, 11], [3, 0, 8, 1, 6, 10], [5, 7, 3]):
        batch = tagged(take(whole, torch.tensor(rows)))
        for u, x in batch.inputs.items():
            batch.inputs[u] = 4 * x
        losses = method.compute_losses(model, batch)
        method.discard_losses()
        masks = {u: (batch.present or {}).get(u, torch.ones(len(rows), dtype=torch.bool)).tolist() for u in history}
        logits = apply_heads(method, method.heads, model(batch.inputs, batch.present))
        expected = literal(
            logits, batch.targets.tolist(), batch.indices.tolist(), masks, history, weight=0.7, margin=margin
        )
        assert losses.terms.keys() == expected.keys()
        for name, value in losses.terms.items():
            assert value.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
        rankings.append(losses.terms["audio_ranking"].item())
    assert max(rankings) > 0
    for row, name in zip(method.history.tolist(), sorted(history), strict=True):
        assert row == pytest.approx(history[name], abs=1e-12)


def test_gradients_are_those_of_fixed_weights_and_a_fixed_history():
    """Autograd of the formula written out, with the confidences of f as constants."""
    model, batch = make_model(dtype=torch.float64), make_batch(2, 6, dtype=torch.float64)
    method = started(QMF(weight=0.5), model, 6)
    method.history = method.history.double() + torch.rand(2, 6, dtype=torch.float64)
    copied = copy.deepcopy((model, method))
    method.backward(method.compute_losses(model, tagged(batch)), model)
    other, literal_method = copied
    features = {u: other.encode(u, x) for u, x in batch.inputs.items()}
    logits = {u: literal_method.heads[u](z) for u, z in features.items()}
    c = {u: torch.logsumexp(x, 1) / 10 for u, x in logits.items()}
    total = F.cross_entropy(sum(c[u].detach()[:, None] * x for u, x in logits.items()), batch.targets)
    for row, u in enumerate(sorted(logits)):
        total = total + F.cross_entropy(logits[u], batch.targets)
        h = method.history[row]
        kappa = (h - h.min()) / (h.max() - h.min())
        for i in range(6):
            j = (i + 1) % 6
            gap = kappa[i] - kappa[j]
            total = total + 0.5 / 6 * torch.relu(gap.sign() * (c[u][i] - c[u][j]) + gap.abs())
    total.backward()
    wanted = {name: p.grad for name, p in other.encoders.named_parameters()}
    for name, p in model.encoders.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in model.fusion.parameters())


def test_without_ranking_the_order_of_samples_does_not_matter():
    model, batch = make_model(dtype=torch.float64), tagged(make_batch(2, 8, dtype=torch.float64))
    method = started(QMF(weight=0.0), model, 8)
    plain = method.compute_losses(model, batch).total
    method.discard_losses()
    turned = method.compute_losses(model, tagged(take(batch, torch.arange(8).flip(0)))).total
    torch.testing.assert_close(plain, turned)


def test_the_surer_modality_counts_more_and_large_logits_stay_finite():
    model = make_model()
    method = started(QMF(), model, 4)
    for head in method.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    method.heads["audio"].bias.data[0], method.heads["video"].bias.data[1] = 200.0, 100.0
    prediction = method.predict(model(make_batch(2, 4).inputs))
    torch.testing.assert_close(prediction.logits[0], torch.tensor([20.0 * 200, 10.0 * 100, 0.0]), rtol=1e-6, atol=1e-3)


def test_a_harder_sample_is_pushed_below_an_easier_one():
    """Two samples alike but for their history: only the ranking acts on their confidences."""
    method = QMF(weight=1.0)
    confidence = torch.zeros(2, requires_grad=True)
    method._ranking(confidence, torch.tensor([1.0, 0.0]), None).backward()
    assert confidence.grad.tolist() == [1.0, -1.0]
    allowed = QMF(margin="allowed")
    assert float(allowed._ranking(torch.zeros(2), torch.tensor([1.0, 0.0]), None)) == 0
    assert float(allowed._ranking(torch.tensor([1.5, 0.0]), torch.tensor([1.0, 0.0]), None)) == pytest.approx(0.5)


def test_the_history_is_stored_and_goes_on():
    loop = MethodLoop(make_model(batch_norm=True), QMF(), make_batch(2, 20))
    loop.run([0])
    again = MethodLoop(make_model(batch_norm=True, seed=1), QMF(), make_batch(2, 20))
    again.load(stored(loop.state()))
    assert torch.equal(again.method.history, loop.method.history)
    assert bool((loop.method.history > 0).all())
    before = loop.method.history.clone()
    loop.run([1])
    again.run([1])
    assert torch.equal(again.method.history, loop.method.history)
    assert bool((loop.method.history > before).all())


@pytest.mark.parametrize("modalities", [["audio", "video"], ["audio", "text", "video"]])
def test_any_order(modalities):
    batch = make_batch(modalities, 12, dtype=torch.float64)
    results = []
    for names in (modalities, modalities[::-1]):
        model = make_model(names, "sum", dtype=torch.float64)
        method = started(QMF(), model, 12)
        for name in names:
            generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
            for module in (model.encoders[name], method.heads[name]):
                for p in module.parameters():
                    p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        results.append(method.compute_losses(model, tagged(batch)).terms)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_what_is_missing_is_named():
    model, batch = make_model(), make_batch(2, 4)
    method = QMF()
    method.setup(model)
    with pytest.raises(ValueError, match=r"`num_train` should be their number\. Found 0\. .*a torch DataLoader"):
        method.start_epoch(EpochContext(0, 3, model))
    method = started(QMF(), model, 4)
    with pytest.raises(RuntimeError, match="QMF needs `indices` in its batches"):
        method.compute_losses(model, bmlr.Batch(batch.inputs, batch.targets, tag="qmf"))
    with pytest.raises(ValueError, match="`num_train` should be 4, the number of samples in QMF's history. Found 5"):
        method.start_epoch(EpochContext(1, 3, model, 5))
    loader = [(batch.inputs, batch.targets)]
    balancer = bmlr.Balancer(model, QMF(), torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=1)
    with pytest.raises(ValueError, match="QMF keeps a history of each training sample"):
        list(balancer.epoch(loader))
    for parameters in ({"weight": -1.0}, {"margin": "none"}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            QMF(**parameters)


def test_the_history_is_that_of_all_processes(monkeypatch):
    """Each of two processes sees half of a batch, and both keep the history of the whole."""
    model, whole = make_model(dtype=torch.float64), tagged(make_batch(2, 8, dtype=torch.float64))
    expected = started(QMF(), model, 10)
    expected.compute_losses(model, whole)
    halves = [tagged(take(whole, torch.arange(8)[rank::2])) for rank in range(2)]
    sent = []
    monkeypatch.setattr("bmlr.methods._qmf.gather_processes", lambda values: sent.append(values) or values[None])
    for half in halves:
        started(QMF(), model, 10).compute_losses(model, half)
    losses, positions = torch.stack(sent[::2]), torch.stack(sent[1::2])
    monkeypatch.setattr(
        "bmlr.methods._qmf.gather_processes", lambda values: losses if values.is_floating_point() else positions
    )
    for half in halves:
        method = started(QMF(), model, 10)
        method.compute_losses(model, half)
        torch.testing.assert_close(method.history, expected.history)
