"""Kinds of models and of averages of weights, beside a method: each computes what plain PyTorch computes."""

import copy
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import bmlr
import own_parts
from bmlr.config import OptimizerOptions, TrainerOptions
from bmlr.methods import Joint, available
from bmlr.training import BalancedModule, load, train
from method_loop import set_up
from toy import Toy
from zoo import make_batch, make_model

#: Methods of each kind: plain losses, gradients scaled, combined and cut.
METHODS = ["Joint", "BMLR", "OGMGE", "AGM", "DGL", "MMPareto"]
#: Those that look at a validation split, or at samples by their index.
LOOKING = {"G2D", "GBlend", "LFMBalanceBenchmark", "ModalitySMV", "MSLR", "QMF", "SampleSMV"}
ALL_METHODS = [name for name in available() if name not in LOOKING]
CPU = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", devices=1, progress=False)


def steps(model, method, batch, count=3):
    """A few steps of SGD by a method; yields after each."""
    set_up(method, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = bmlr.Balancer(model, method, optimizer, max_epochs=count)
    for _ in range(count):
        for part in balancer.epoch([batch]):
            balancer.step(part)
        yield


def assert_same_weights(one, other, **tolerance):
    values = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, values[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_a_model_of_one_modality_is_an_ordinary_classifier():
    batch = make_batch(1, 12, seed=1)
    model = make_model(1, "concat", seed=2)
    plain = copy.deepcopy(model)
    for _ in steps(model, Joint(), batch):
        pass
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    (name,) = plain.modalities
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(plain.fusion.fused({name: plain.encoders[name](batch.inputs[name])}), batch.targets).backward()
        optimizer.step()
    assert_same_weights(model, plain, rtol=1e-6, atol=1e-6)


def make_shared():
    """Two views by one encoder."""
    torch.manual_seed(0)
    view = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
    return bmlr.MultimodalClassifier({"left": view, "right": view}, 3, "concat")


def shared_batch():
    torch.manual_seed(1)
    return bmlr.Batch({"left": torch.randn(12, 4), "right": torch.randn(12, 4)}, torch.arange(12) % 3)


def test_a_shared_encoder_gets_the_gradients_of_both_modalities():
    batch, model = shared_batch(), make_shared()
    apart = make_shared()
    apart.encoders["right"] = copy.deepcopy(apart.encoders["left"])
    for one in (model, apart):
        method = bmlr.BMLR(beta=0.5)
        method.setup(one)
        method.backward(method.compute_losses(one, batch), one)
    left, right = (dict(apart.encoders[name].named_parameters()) for name in ("left", "right"))
    for name, parameter in model.encoders["left"].named_parameters():
        torch.testing.assert_close(parameter.grad, left[name].grad + right[name].grad)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_method_takes_a_shared_encoder_or_says_why_not(name):
    try:
        for _ in steps(make_shared(), bmlr.methods.create(name), shared_batch()):
            pass
    except ValueError as error:
        assert "share" in str(error)  # noqa: PT017
        assert "give each modality an encoder of its own" in str(error)  # noqa: PT017


class Views(Toy):
    """Two vectors of one size."""

    modalities = {"audio": Toy.modalities["audio"], "image": Toy.modalities["audio"]}

    def split(self, name):
        whole = super().split(name)
        return bmlr.data.ArraySplit(
            {"audio": whole.inputs["audio"], "image": whole.inputs["audio"][::-1]}, whole.targets
        )


def test_a_run_of_a_shared_encoder_is_read_back_shared(tmp_path):
    def make():
        view = nn.Linear(4, 6)
        return bmlr.MultimodalClassifier({"audio": view, "image": view}, 3, "sum")

    torch.manual_seed(0)
    model = make()
    train(Views(24), bmlr.BMLR(), model, trainer=CPU, run=tmp_path / "run")
    again = load(tmp_path / "run", model=make()).model
    assert again.encoders["audio"].weight is again.encoders["image"].weight
    assert_same_weights(again, model, rtol=0, atol=0)


class Recurrent(nn.Module):
    """The last state of an LSTM over sequences of their own length."""

    def __init__(self, in_features, width):
        super().__init__()
        self.num_features = width
        self.lstm = nn.LSTM(in_features, width, batch_first=True)

    def forward(self, x):
        lengths = (x != 0).any(2).sum(1).clamp(min=1)  # some methods look at zeros
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[1][0][0]


@pytest.mark.parametrize("name", ALL_METHODS)
def test_recurrent_encoders_train_by_every_method(name):
    torch.manual_seed(0)
    encoders = {modality: Recurrent(3, 6) for modality in ("audio", "text", "video")}
    model = bmlr.MultimodalClassifier(encoders, 3, "sum")
    inputs = {modality: torch.randn(12, 5, 3) for modality in encoders}
    inputs["text"][:6, 3:] = 0
    method = bmlr.methods.create(name)
    present = None if method.needs_all_modalities else {"audio": torch.arange(12) > 2}
    start = copy.deepcopy(model.state_dict())
    for _ in steps(model, method, bmlr.Batch(inputs, torch.arange(12) % 3, present), 6):
        pass
    for modality in model.modalities[: 1 if method.conformance.modality_parameter else None]:
        key = f"encoders.{modality}.lstm.weight_hh_l0"
        assert torch.isfinite(model.state_dict()[key]).all()
        assert not torch.equal(model.state_dict()[key], start[key]), key


class Checkpointed(nn.Module):
    """An encoder whose activations are computed anew in the backward pass, with dropout.

    In training mode only: AGM encodes in evaluation mode too, and the backward pass would run in another.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.passes = encoder, 0
        self.num_features = encoder[-1].out_features

    def _run(self, x):
        self.passes += 1
        return self.encoder(x)

    def forward(self, x):
        return checkpoint(self._run, x, use_reentrant=False) if self.training else self.encoder(x)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing_changes_nothing_but_the_memory(name):
    batch = make_batch(2, 12, seed=1)
    models = []
    for wraps in (lambda encoder: encoder, Checkpointed):
        torch.manual_seed(2)
        encoders = {
            modality: wraps(nn.Sequential(nn.Linear(x.shape[1], 9), nn.Dropout(0.5), nn.Linear(9, 4)))
            for modality, x in batch.inputs.items()
        }
        models.append(bmlr.MultimodalClassifier(encoders, 3, "concat"))
        torch.manual_seed(3)
        for _ in steps(models[-1], bmlr.methods.create(name), batch):
            pass
    plain, checkpointed = models
    for modality, encoder in checkpointed.encoders.items():
        assert encoder.passes >= 6  # in the forward and again in the backward pass of each of three steps
        assert_same_weights(plain.encoders[modality], encoder.encoder, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_average_of_the_weights_beside_a_method(name, wrapped):
    torch.manual_seed(0)
    model = own_parts.make_wrapped() if wrapped else make_model(2, "concat", seed=2)
    batch = (
        bmlr.Batch({"audio": torch.randn(9, 4), "image": torch.randn(9, 1, 8, 8)}, torch.arange(9) % 3)
        if wrapped
        else make_batch(2, 12, seed=1)
    )
    method = bmlr.methods.create(name)
    method.setup(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    of_head = [[key for key, _ in one.fusion.named_parameters()] for one in (average.module, model)]
    assert of_head[0] == of_head[1]  # a copy knows its encoders
    expected = None
    for _ in steps(model, method, batch):
        average.update_parameters(model)
        current = {key: value.clone() for key, value in model.state_dict().items()}
        expected = current if expected is None else {k: 0.75 * expected[k] + 0.25 * v for k, v in current.items()}
    for key, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    model.load_state_dict(expected)
    predictions = [method.predict(one(batch.inputs)) for one in (average.eval(), model.eval())]
    torch.testing.assert_close(predictions[0].logits, predictions[1].logits)
    for modality in model.modalities:
        torch.testing.assert_close(*(prediction.unimodal_logits[modality] for prediction in predictions))


class Collected(lightning.Callback):
    """Weights at the end of every epoch."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append({name: p.detach().clone() for name, p in pl_module.model.named_parameters()})


def fit(callbacks, name, epochs):
    torch.manual_seed(0)
    module = BalancedModule(
        make_model(2, "concat", seed=2), bmlr.methods.create(name), OptimizerOptions(name="sgd", lr=0.1)
    )
    loader = torch.utils.data.DataLoader([make_batch(2, 12, seed=seed) for seed in (1, 2)], batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders
        trainer.fit(module, loader)
    return module


@pytest.mark.parametrize("name", ["BMLR", "OGMGE", "MMPareto"])
def test_lightning_averages_the_weights_of_the_last_epochs(name):
    collected = Collected()
    module = fit([collected, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)], name, 4)
    for key, value in module.model.named_parameters():
        mean = torch.stack([weights[key] for weights in collected.weights[:3]]).mean(0)
        torch.testing.assert_close(value, mean, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(next(module.model.parameters()), next(iter(collected.weights[-1].values())))


@pytest.mark.parametrize("name", ["BMLR", "OGMGE", "MMPareto"])
def test_lightning_keeps_a_moving_average(name):
    plain = fit([], name, 3)
    averaged = fit([EMAWeightAveraging(decay=0.5)], name, 3)
    differences = [
        (a - b).abs().max() for a, b in zip(plain.model.parameters(), averaged.model.parameters(), strict=True)
    ]
    assert max(differences) > 1e-4
    again = fit([EMAWeightAveraging(decay=0.0)], name, 3)  # the average is the last
    assert_same_weights(again.model, plain.model, rtol=1e-6, atol=1e-7)
