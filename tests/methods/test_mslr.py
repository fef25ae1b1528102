import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import MSLR, EpochContext, Joint
from method_loop import MethodLoop
from zoo import make_batch, make_model


def accuracies(model, batch):
    """Fraction of right unimodal answers, in plain Python."""
    present = batch.present or {}
    with torch.no_grad():
        logits = model(batch.inputs, batch.present).unimodal_logits
    rows = {u: [i for i in range(len(batch)) if u not in present or bool(present[u][i])] for u in logits}
    return {
        u: sum(int(x[i].argmax()) == int(batch.targets[i]) for i in rows[u]) / len(rows[u]) for u, x in logits.items()
    }


class Watched(MethodLoop):
    """A loop that compares the gradients of every step with those of the formula."""

    def __init__(self, *arguments, rates, memory, **options):
        super().__init__(*arguments, **options)
        self.rates, self.memory, self.history, self.seen = rates, memory, [], []

    def step(self, batch):
        epoch = self.method.epoch
        if epoch > len(self.history):
            self.history.append(self.before)
        expected = dict(self.rates)
        if epoch > self.memory:
            for u in expected:
                past = [entry[u] for entry in self.history[-1 - self.memory : -1]]
                expected[u] *= self.history[-1][u] / (sum(past) / len(past))
        self.seen.append(tuple(expected.values()))
        loss = F.cross_entropy(self.model(batch.inputs, batch.present).logits, batch.targets)
        named = dict(self.model.named_parameters())
        plain = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        super().step(batch)
        for name, p in named.items():
            factor = expected[name.split(".")[1]] if name.startswith("encoders.") else 1.0
            torch.testing.assert_close(p.grad, factor * plain[name], rtol=1e-6, atol=1e-12)

    def run(self, epochs):
        for epoch in epochs:
            self.model.eval()
            self.before = accuracies(self.model, self.train)
            super().run([epoch])


@pytest.mark.parametrize("modalities", [2, 3])
def test_rates_follow_the_validation_accuracy(modalities):
    rates = {"audio": 0.5, "video": 1.0, "text": 2.0}
    names = ("audio", "video", "text")[:modalities]
    present = {"video": torch.arange(24) % 4 > 0}
    train = make_batch(modalities, 24, dtype=torch.float64, present=present)
    method = MSLR(rates={u: rates[u] for u in names if u != "video"}, memory=2)
    loop = Watched(
        make_model(modalities, "sum", dtype=torch.float64), method, train,
        max_epochs=6, rates={u: rates[u] for u in names}, memory=2,
    )  # fmt: skip
    loop.run(range(6))
    assert len(set(loop.seen)) >= 3  # the accuracies did move the rates
    assert method.accuracies.shape == (2, modalities)


def test_without_rates_its_first_epochs_are_joint_training_bit_for_bit():
    states = []
    for method in (MSLR(memory=3), Joint()):
        torch.manual_seed(0)
        loop = MethodLoop(make_model(2), method, make_batch(2, 24))
        loop.run(range(3))
        states.append(loop.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_modality_nothing_is_known_about_keeps_its_rate():
    model, method = make_model(2), MSLR(rates={"video": 0.25}, memory=1)
    method.setup(model)
    batch = make_batch(2, 8, present={"video": torch.zeros(8, dtype=torch.bool)})
    for epoch in range(3):
        method.start_epoch(EpochContext(epoch, 3, model, 8, lambda: [batch], lambda: [batch]))
    assert method.factors.tolist() == [1.0, 0.25]


def test_errors_are_compared_the_other_way_round(monkeypatch):
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 5) for u in ("audio", "video")}, bmlr.tasks.Regression())
    method = MSLR(memory=1)
    method.setup(model)
    errors = iter([torch.tensor([4.0, 1.0]), torch.tensor([2.0, 2.0])])
    monkeypatch.setattr(method, "_scores", lambda context: next(errors).double())
    for epoch in range(3):
        method.start_epoch(EpochContext(epoch, 3, model))
    assert method.factors.tolist() == [2.0, 0.5]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"`rates\['audio'\]` should be a positive"):
        MSLR(rates={"audio": 0.0})
    with pytest.raises(ValueError, match="`rates` should name modalities among audio, video. Found 'vidoe'. Did you"):
        MSLR(rates={"vidoe": 0.5}).setup(make_model(2))
    model, method = make_model(2), MSLR()
    method.setup(model)
    with pytest.raises(ValueError, match="MSLR follows the validation split: give `val` a loader"):
        method.start_epoch(EpochContext(1, 3, model, 8, list, list))
    with pytest.raises(RuntimeError, match="MSLR was not set up for this model"):
        MSLR().eval()(model(make_batch(2).inputs), make_batch(2).targets)
