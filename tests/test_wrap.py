"""Wrapped models train as models written for the library, and stay unchanged."""

import copy

import pytest
import torch
from torch import nn

import bmlr
from bmlr.methods import available
from method_loop import MethodLoop
from zoo import make_batch, make_model


class Net(nn.Module):
    """The zoo's model as somebody else would have written it."""

    def __init__(self, model):
        super().__init__()
        self.nets = nn.ModuleList(model.encoders.values())
        self.names = list(model.encoders)
        self.decision = model.fusion

    def forward(self, audio, video):
        features = [net(x) for net, x in zip(self.nets, (audio, video), strict=True)]
        return {"logits": self.decision.fused(dict(zip(self.names, features, strict=True))), "features": features}


def make_wrapped(**options):
    model = make_model(2, "own", seed=1, **options)
    return bmlr.wrap(Net(model), {"audio": "nets.0", "video": "nets.1"}, make_batch(2, 6, seed=3).inputs), model


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", available())
def test_every_method_trains_a_wrapped_model_as_its_own(name, batch_norm):
    states = []
    for which in ("native", "wrapped"):
        torch.manual_seed(0)
        wrapped, native = make_wrapped(batch_norm=batch_norm)
        cls = bmlr.methods.get(name)
        method = cls(**cls.conformance.short)
        MethodLoop(wrapped if which == "wrapped" else native, method, make_batch(2, 24, seed=2), max_epochs=2).run(
            [0, 1]
        )
        states.append(native.state_dict())
    start = make_wrapped(batch_norm=batch_norm)[1].state_dict()
    assert any(not torch.equal(states[0][key], start[key]) for key in start)  # of an ensemble those of its runs
    for key, value in states[0].items():
        torch.testing.assert_close(
            states[1][key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


class Steps(nn.Module):
    """A row of numbers as a sequence of three steps."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.stack([self.net(x * scale) for scale in (0.5, 1.0, 2.0)], 1)


class SequenceNet(Net):
    """The same with encoders that return sequences, averaged behind them or before."""

    def __init__(self, model, *, pools_behind):
        super().__init__(model)
        self.nets = nn.ModuleList(Steps(net) for net in self.nets)
        self.pools = nn.ModuleList(nn.Identity() for _ in self.nets)
        self.pools_behind = pools_behind

    def forward(self, audio, video):
        steps = [net(x) for net, x in zip(self.nets, (audio, video), strict=True)]
        if self.pools_behind:
            pooled = [z.mean(1) for z in steps]
        else:
            pooled = [pool(z.mean(1)) for pool, z in zip(self.pools, steps, strict=True)]
        return self.decision.fused(dict(zip(self.names, pooled, strict=True)))


@pytest.mark.parametrize("name", available())
def test_every_method_trains_sequences_as_their_means(name):
    states = []
    for encoders in ({"audio": "nets.0", "video": "nets.1"}, {"audio": "pools.0", "video": "pools.1"}):
        torch.manual_seed(0)
        net = SequenceNet(make_model(2, "own", seed=1), pools_behind=encoders["audio"] == "nets.0")
        model = bmlr.wrap(net, encoders, make_batch(2, 6, seed=3).inputs)
        assert model(make_batch(2, 6, seed=3).inputs).features["audio"].ndim == (3 if net.pools_behind else 2)
        cls = bmlr.methods.get(name)
        method = cls(**cls.conformance.short)
        # No sample of the first batch has audio.
        present = None if cls.needs_all_modalities else {"audio": torch.arange(24) > 11}
        MethodLoop(model, method, make_batch(2, 24, seed=2, present=present), max_epochs=2).run([0, 1])
        states.append(net.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(
            states[1][key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


class Pooler(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, hidden):
        return self.dense(hidden[:, 0]).tanh()


class Bert(nn.Module):
    """Tokens and a mask in; an object like Hugging Face's out."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.pooler = Pooler()

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.embeddings(input_ids), src_key_padding_mask=attention_mask == 0)
        return {"last_hidden_state": hidden, "pooler_output": self.pooler(hidden)}


class TextAndSound(nn.Module):
    """Two inputs for the text, an LSTM over the audio, a method, normalisation before, a head of several layers."""

    def __init__(self, leak=False):
        super().__init__()
        self.leak = leak
        self.bert = Bert()
        self.norm = nn.BatchNorm1d(3)
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.project = nn.Linear(6, 5)
        self.classifier = nn.Sequential(
            nn.Linear(13, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.1), nn.Linear(7, 4)
        )

    def hear(self, audio):
        steps, _ = self.lstm(self.norm(audio.mT).mT)
        return self.project(steps[:, -1])

    def forward(self, input_ids, attention_mask, sound):
        text = self.bert(input_ids, attention_mask)["pooler_output"]
        if self.leak:
            text = text * attention_mask.float().mean(1, keepdim=True)
        return (self.classifier(torch.cat([text, self.hear(sound)], 1)), "attentions")


def make_text_batch(size=4, length=5):
    generator = torch.Generator().manual_seed(size)
    mask = torch.ones(size, length, dtype=torch.int64)
    mask[1:, -1] = 0
    return {
        "input_ids": torch.randint(20, (size, length), generator=generator),
        "attention_mask": mask,
        "sound": torch.randn(size, 7, 3, generator=generator),
    }


INPUTS = {"text": ("input_ids", "attention_mask"), "audio": "sound"}


def wrap_text_model(net=None, encoders=None, **options):
    encoders = encoders or {"text": "bert.pooler", "audio": "hear"}
    return bmlr.wrap(net or TextAndSound(), encoders, make_text_batch(), **{"inputs": INPUTS, **options})


@pytest.mark.parametrize("text", ["bert", "bert.pooler", "bert.layer"])
def test_encoders_are_found_by_module_method_and_output(text):
    net = TextAndSound()
    if text == "bert.layer":  # a sequence
        net.bert.pooler.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    model = wrap_text_model(net, {"text": text, "audio": "hear"})
    assert model.modalities == ("text", "audio")
    assert model.task.num_outputs == 4
    assert model.fusion.feature_dims == {"text": 8, "audio": 5}
    owned = {
        name: {n for n, p in net.named_parameters() if any(p is q for q in model.encoders[name].parameters())}
        for name in model.modalities
    }
    assert owned["audio"] == {n for n, _ in net.named_parameters() if n.startswith(("norm.", "lstm.", "project."))}
    assert owned["text"] == {
        n for n, _ in net.named_parameters() if n.startswith("bert.") and (text != "bert.layer" or "pooler" not in n)
    }
    head = {n.removeprefix("net.") for n, _ in model.fusion.named_parameters()}
    assert head == {n for n, _ in net.named_parameters()} - owned["audio"] - owned["text"]
    assert net.state_dict().keys() == before.keys()
    for key, value in net.state_dict().items():  # running statistics too
        assert torch.equal(value, before[key]), key
    assert list(model.state_dict()) == [f"net.{key}" for key in before]
    assert not any("forward" in vars(module) or "hear" in vars(module) for module in net.modules())


def test_logits_are_those_of_the_model():
    model = wrap_text_model().eval()
    batch = make_text_batch(6, 8)  # other lengths than the example's
    output = model(batch)
    expected = model.net(**batch)[0]
    assert torch.equal(output.logits, expected)
    torch.testing.assert_close(output.decision_logits, expected)
    kept = {"text": output.features["text"], "audio": torch.zeros(6, 5)}
    torch.testing.assert_close(output.unimodal_logits["text"], model.net.classifier(torch.cat(list(kept.values()), 1)))
    inputs = model.split_inputs(batch)
    for name, features in output.features.items():
        torch.testing.assert_close(model.encode(name, inputs[name]), features)


def test_gradients_and_running_statistics_keep_apart():
    model = wrap_text_model().train()
    targets = torch.arange(4)
    losses = bmlr.BMLR()(model(make_text_batch(4)), targets)
    parameters = list(model.fusion.parameters())
    assert all(
        g is None for g in torch.autograd.grad(losses.terms["text"], parameters, retain_graph=True, allow_unused=True)
    )
    reached = torch.autograd.grad(
        losses.terms["fused"], list(model.encoders["text"].parameters()), retain_graph=True, allow_unused=True
    )
    assert all(g is None for g in reached)
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.net.norm.num_batches_tracked == model.net.classifier[1].num_batches_tracked == 1


def test_missing_samples_do_not_reach_an_encoder():
    model = wrap_text_model().eval()
    present = {"audio": torch.tensor([True, False, True, True, False, True])}
    batch = make_text_batch(6)
    output = model(batch, present)
    assert (output.features["audio"][[1, 4]] == 0).all()
    assert not (output.features["audio"][0] == 0).all()
    spoilt = {**batch, "sound": torch.where(present["audio"][:, None, None], batch["sound"], torch.nan)}
    assert torch.equal(model(spoilt, present).logits, output.logits)


def test_a_shared_and_a_repeated_module_are_refused():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, left, right):
            return self.head(self.net(left) - self.net(right))

    batch = {"left": torch.randn(3, 3), "right": torch.randn(3, 3)}
    with pytest.raises(
        ValueError, match=r"'net' should run exactly once in a forward pass of the model. It ran 2 times"
    ):
        bmlr.wrap(Siamese(), {"left": "net", "right": "net"}, batch)


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.head(self.a(a) + self.b(b + a))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap_text_model(encoders={"text": "bert.poler", "audio": "hear"}), "Did you mean 'bert.pooler'"),
        (lambda: wrap_text_model(encoders={"text": nn.Tanh(), "audio": "hear"}), "should be a module of the model"),
        (lambda: wrap_text_model(TextAndSound(leak=True)), "function of the encoders' features alone"),
        (lambda: wrap_text_model(inputs={"text": "input_ids"}), "`example` should hold 'audio', the input of 'audio'"),
        (lambda: wrap_text_model(inputs={**INPUTS, "txt": "x"}), "Found 'txt'. Did you mean 'text'"),
        (lambda: wrap_text_model(head="norm"), "The model should return logits of shape"),
        (lambda: bmlr.wrap(TextAndSound(), {}, make_text_batch()), "at least 1 modality"),
        (
            lambda: bmlr.wrap(Crossed(), {"a": "a", "b": "b"}, {"a": torch.randn(3, 3), "b": torch.randn(3, 3)}),
            "Encoder 'b' should read its own modality's input alone",
        ),
        (
            lambda: bmlr.wrap(Crossed(), {"a": "a", "b": "b"}, {"a": torch.ones(3, 3), "b": torch.ones(3, 3)}),
            "2 different samples. Those of 'a' are equal",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("?", r"\?")):
        make()


def test_the_head_may_be_named_where_forward_returns_no_logits():
    class WithLoss(TextAndSound):
        def forward(self, input_ids, attention_mask, sound):
            return super().forward(input_ids, attention_mask, sound)[0].logsumexp(1).mean()

    model = wrap_text_model(WithLoss(), head="classifier")
    assert model(make_text_batch(5)).logits.shape == (5, 4)


def test_a_copy_is_a_model_of_its_own():
    model = wrap_text_model()
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert copied(make_text_batch()).logits.abs().sum() > 0
    assert all(q is not p for p in model.parameters() for q in copied.fusion.parameters())
    assert {id(p) for p in copied.encoders["audio"].parameters()} <= {id(p) for p in copied.net.parameters()}
