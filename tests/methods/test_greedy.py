import copy
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from bmlr.methods import EpochContext, Greedy
from method_loop import MethodLoop
from zoo import FEATURE_DIMS, make_batch, make_model


def squares(tensors):
    return sum(float(x.square().sum()) for x in tensors if x is not None)


class Literal:
    """The rule in plain Python, fed with gradients."""

    def __init__(self, names, epsilon, window):
        self.names, self.epsilon, self.window = sorted(names), epsilon, window
        self.main, self.bypass = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self.gates = {u: [] for u in names}  # of every sample so far
        self.left, self.leader = 0, None

    def means(self):
        return {u: torch.stack(rows).mean(0) for u, rows in self.gates.items()}

    def forward(self, exchange, z, targets, present):
        """Losses of a step by modality."""
        squeezed = exchange.squeeze(torch.cat([z[u] for u in self.names], 1)).clamp(min=0)
        gates = {u: torch.sigmoid(exchange.excitations[u](squeezed)) for u in self.names}
        losses = {}
        for u in self.names:
            rows = present[u].nonzero().flatten() if u in present else torch.arange(len(targets))
            self.gates[u] += list(gates[u].detach()[rows])
        for u in self.names:
            rows = present[u].nonzero().flatten() if u in present else torch.arange(len(targets))
            gate = self.means()[u].expand_as(gates[u]) if self.left and self.leader == u else gates[u]
            losses[u] = F.cross_entropy(exchange.heads[u](gate * z[u])[rows], targets[rows])
        return losses

    def step(self, model, exchange, *, opens):
        if self.left:
            self.left -= 1
            return
        for u in self.names:
            main = [*model.encoders[u].parameters(), *exchange.heads[u].parameters()]
            bypass = [*exchange.excitations[u].parameters(), *exchange.squeeze.parameters()]
            self.main[u] += squares([p.grad for p in main]) / squares([p.detach() for p in main])
            self.bypass[u] += squares([p.grad for p in bypass]) / squares([p.detach() for p in bypass])
        ratio = {u: math.log10(self.bypass[u] / self.main[u]) for u in self.names}
        lead = {u: ratio[u] - sum(ratio[v] for v in ratio if v != u) / (len(ratio) - 1) for u in ratio}
        u = max(lead, key=lead.get)
        if opens and lead[u] > self.epsilon:
            self.left, self.leader = self.window, u


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("lacking", [False, True])
def test_losses_speeds_and_windows_over_steps_are_those_of_a_literal_version(modalities, lacking):
    present = {"video": torch.arange(8) % 3 > 0} if lacking else {}
    batch = make_batch(modalities, dtype=torch.float64, present=present or None)
    method = Greedy(epsilon=0.01, window=3)
    loop = MethodLoop(make_model(modalities, dtype=torch.float64), method, batch, max_epochs=3)
    literal, windows = Literal(loop.model.modalities, 0.01, 3), []
    for epoch in range(3):
        method.start_epoch(loop.context(epoch))
        for _ in range(5):
            z = loop.model(batch.inputs, batch.present).features
            expected = literal.forward(method.exchange, z, batch.targets, present)
            loop.optimizer.zero_grad()
            losses = method.compute_losses(loop.model, batch)
            for u, value in expected.items():
                assert losses.logs[f"loss_{u}"].item() == pytest.approx(value.item(), abs=1e-9)
            assert losses.total.item() == pytest.approx(sum(expected.values()).item(), abs=1e-9)
            assert losses.logs["rebalances"].item() == float(literal.left > 0)
            method.backward(losses, loop.model)
            method.adjust_gradients(loop.model)
            literal.step(loop.model, method.exchange, opens=epoch >= 1)
            speeds = [[values[u] for u in literal.names] for values in (literal.main, literal.bypass)]
            torch.testing.assert_close(method.speeds, torch.tensor(speeds, dtype=torch.float64), rtol=1e-9, atol=0)
            means = torch.cat([literal.means()[u] for u in literal.names])
            torch.testing.assert_close(method.mean_gates, means, rtol=0, atol=1e-9)
            assert int(method.remaining) == literal.left
            if literal.left:
                assert literal.names[int(method.leader)] == literal.leader
            windows.append(literal.left)
            loop.optimizer.step()
    assert windows[:5] == [0] * 5  # the first epoch
    assert {0, 1, 2, 3} == set(windows)


def test_a_window_stops_what_the_leader_hears_from_the_others():
    model, batch, method = make_model(), make_batch(), Greedy(first_epoch=0, window=1, epsilon=0.0)
    method.setup(model)
    method(model(batch.inputs), batch.targets)
    method.remaining.fill_(1)
    method.leader.fill_(0)  # audio
    output = model(batch.inputs)
    loss = method(output, batch.targets)
    gradients = torch.autograd.grad(
        loss.total, list(method.exchange.excitations["audio"].parameters()), allow_unused=True
    )
    assert not any(g is not None and g.any() for g in gradients)
    heard = torch.autograd.grad(
        method(output, batch.targets).total, list(method.exchange.excitations["video"].parameters())
    )
    assert all(g.any() for g in heard)
    method.eval()  # predictions and losses of evaluation know no window and change no mean
    state = copy.deepcopy(method.state_dict())
    plain = method(output, batch.targets).total
    method.remaining.fill_(0)
    assert torch.equal(method(output, batch.targets).total, plain)
    assert torch.equal(method.mean_gates, state["mean_gates"])


def test_predictions_are_means_of_the_heads_that_are_there():
    present = {"video": torch.arange(8) % 2 > 0}
    model, batch, method = make_model(), make_batch(present=present), Greedy()
    method.setup(model)
    output = model(batch.inputs, present)
    prediction = method.predict(output)
    z = output.features
    gates = method.exchange.gates(z)
    logits = method.exchange.branch_logits(z, gates)
    torch.testing.assert_close(prediction.logits[1::2], (logits["audio"] + logits["video"])[1::2] / 2)
    torch.testing.assert_close(prediction.logits[::2], logits["audio"][::2])
    alone = {"audio": z["audio"], "video": torch.zeros(8, FEATURE_DIMS["video"])}
    expected = method.exchange.branch_logits(alone, method.exchange.gates(alone))["audio"]
    torch.testing.assert_close(prediction.unimodal_logits["audio"], expected)


def test_paths_without_gradient_count_as_zero():
    model, batch, method = make_model(), make_batch(), Greedy(first_epoch=0)
    model.freeze("audio")
    method.setup(model)
    method.start_epoch(EpochContext(0, 1, model))
    for p in method.exchange.heads["audio"].parameters():
        p.requires_grad_(False)
    method.backward(method(model(batch.inputs), batch.targets), model)
    method.adjust_gradients(model)
    assert method.speeds[0, 0] == 0
    assert bool(method.speeds[0, 1] > 0)
    assert int(method.remaining) == 5  # whose main path does not move learns by hearsay alone
    assert int(method.leader) == 0


def test_without_setup_and_out_of_range():
    with pytest.raises(RuntimeError, match="Greedy was not set up"):
        Greedy()(make_model()(make_batch().inputs), make_batch().targets)
    for name, value in (("epsilon", -1), ("window", 0), ("first_epoch", -1), ("ratio", 0)):
        with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
            Greedy(**{name: value})
