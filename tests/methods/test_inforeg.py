import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import EpochContext, InfoReg
from method_loop import MethodLoop
from zoo import make_batch, make_model


def literal_scores(output, targets, *, official):
    """Sum or mean of the true class's probability, one sample at a time."""
    sums = {
        u: sum(float(row.softmax(0)[y]) for row, y in zip(x.detach(), targets, strict=True))
        for u, x in output.unimodal_logits.items()
    }
    return sums if official else {u: value / len(targets) for u, value in sums.items()}


def literal_strength(scores, u, beta, *, official, leading):
    """α of one modality; 0 where it leads nobody."""
    led = [scores[u] - other for v, other in scores.items() if v != u and other < scores[u]]
    if not led:
        return 0.0
    gap = math.tanh(sum(led) / len(led))
    return (0.95 if u == leading else 0.1) * math.exp(gap) if official else math.exp(beta * gap)


def literal_window(traces, u, threshold, *, official, leading):
    """Whether the window is open, from the traces of the epochs before by modality."""
    if official:
        values = [0.0] * 10 + traces[leading]
        now, before = sum(values[-10:]) / 10, sum(values[-11:-1]) / 10
        return not traces[leading] or (now - before) / now > threshold
    values = traces[u]
    return len(values) < 2 or (values[-1] - values[-2]) / values[-1] > threshold


class Watched(MethodLoop):
    """A loop that compares every step with the specification."""

    def __init__(self, *arguments, leading="audio", **options):
        super().__init__(*arguments, **options)
        self.leading = leading
        self.traces = {u: [] for u in self.model.modalities}
        self.windows, self.largest = [], 0.0

    def run(self, epochs):
        for epoch in epochs:
            self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self.open = {
                u: literal_window(
                    self.traces, u, self.method.threshold, official=self.method.form == "official", leading=self.leading
                )
                for u in self.traces
            }
            self.windows.append(dict(self.open))
            self.squares = {u: [] for u in self.traces}
            super().run([epoch])
            for u, squares in self.squares.items():
                self.traces[u].append(sum(squares) / (1 if self.method.form == "official" else len(squares)))

    def step(self, batch):
        official = self.method.form == "official"
        named = dict(self.model.named_parameters())
        output = self.model(batch.inputs)
        total = F.cross_entropy(output.logits, batch.targets)
        if self.method.unimodal_losses or (self.method.unimodal_losses is None and official):
            total = total + sum(F.cross_entropy(x, batch.targets) for x in output.unimodal_logits.values())
        expected = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
        scores = literal_scores(output, batch.targets, official=official)
        for u in scores:
            own = {n: g for n, g in expected.items() if n.startswith(f"encoders.{u}.")}
            if not official:
                self.squares[u].append(sum(float(x) ** 2 for g in own.values() for x in g.flatten()))
            if self.open[u]:
                alpha = literal_strength(
                    scores, u, self.method.beta, official=official, leading=self.leading
                )  # fmt: skip
                for name, plain in own.items():
                    expected[name] = plain + alpha * (named[name].detach() - self.start[name])
                    self.largest = max(self.largest, float((expected[name] - plain).abs().max()))
            if official:
                weights = [g for n, g in expected.items() if n in own and g.ndim == 2]
                self.squares[u].append(sum(float(g.square().mean()) for g in weights))
        super().step(batch)
        for name, p in named.items():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    ("parameters", "epochs"),
    [
        ({"beta": 2.0}, 5),
        ({"threshold": 0.5, "unimodal_losses": True}, 4),
        ({"form": "official", "leading": "video"}, 14),
        ({"form": "official"}, 3),
    ],
)
def test_steps_and_windows_are_those_of_the_specification(modalities, parameters, epochs):
    model, train = make_model(modalities, dtype=torch.float64), make_batch(modalities, 24, dtype=torch.float64)
    leading = parameters.get("leading", "audio")
    loop = Watched(model, InfoReg(**parameters), train, max_epochs=epochs, leading=leading)
    loop.run(range(epochs))
    assert loop.largest > 1e-3  # penalties there were
    states = {value for window in loop.windows for value in window.values()}
    assert states == {True, False} or epochs == 3


def test_an_encoder_in_the_first_step_of_an_epoch_is_where_it_started():
    model, method, batch = make_model(2), InfoReg(), make_batch(2)
    method.setup(model)
    method.start_epoch(EpochContext(0, 2, model))
    losses = method(model(batch.inputs), batch.targets)
    method.backward(losses, model)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.adjust_gradients(model)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())
    assert [float(losses.logs[f"window_{u}"]) for u in model.modalities] == [1.0, 1.0]


def test_a_step_whose_gradients_overflowed_is_not_traced():
    model, method, batch = make_model(2), InfoReg(), make_batch(2)
    method.setup(model)
    method.start_epoch(EpochContext(0, 2, model))
    for factor in (1.0, math.inf):
        model.zero_grad()
        method.backward(method(model(batch.inputs), batch.targets), model, scale=factor)
        method.adjust_gradients(model)
    assert bool(torch.isfinite(method.squares).all())
    assert float(method.steps) == 1


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="`leading` should name modalities among audio, video. Found 'text'"):
        InfoReg(leading="text").setup(make_model(2))
    lookup = {u: nn.Sequential(nn.Flatten(), nn.Identity()) for u in ("audio", "video")}
    model = bmlr.MultimodalClassifier(lookup, 3, feature_dims={"audio": 4, "video": 6})
    InfoReg().setup(model)
    with pytest.raises(ValueError, match="traces the weights of the leading encoder. Found none in that of 'audio'"):
        InfoReg(form="official").setup(model)
