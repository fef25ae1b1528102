"""Three models that people bring, each by every loop and method, then diagnosed, exported and served."""

import math

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, TrainingArguments, ViTConfig, ViTModel

import bmlr
from bmlr.config import OptimizerOptions, TrainerOptions
from bmlr.data import from_datasets
from bmlr.diagnosis import blind_modality_test, diagnose
from bmlr.export import export_model
from bmlr.integrations.hf import BalancedTrainer
from bmlr.integrations.lightning import BalancedMixin
from bmlr.training import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
]
SAMPLES, EPOCHS, RATE = 12, 2, 0.05


class TextImage(nn.Module):
    """Two encoders of Hugging Face and a linear head."""

    def __init__(self):
        super().__init__()
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **size, **off))
        self.vit = ViTModel(ViTConfig(image_size=8, patch_size=4, **size, **off))
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids, pixel_values):
        features = [self.bert(input_ids).pooler_output, self.vit(pixel_values).pooler_output]
        return {"logits": self.head(torch.cat(features, 1))}


class AudioText(nn.Module):
    """A forward of its own: a sequence behind an LSTM, words by a method, a head of two layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.lstm = nn.LayerNorm(5), nn.LSTM(5, 6, batch_first=True)
        self.words = nn.Embedding(20, 7, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3))

    def read(self, input_ids):
        present = (input_ids > 0).float()[..., None]
        return (self.words(input_ids) * present).sum(1) / present.sum(1).clamp(min=1)

    def forward(self, audio, input_ids):
        steps, _ = self.lstm(self.norm(audio))
        return (self.head(torch.cat([steps.mean(1), self.read(input_ids)], 1)), "attentions")


class Regressor(nn.Module):
    """A number from three sequences."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({name: nn.LSTM(5, 4, batch_first=True) for name in ("audio", "video", "touch")})
        self.pools = nn.ModuleDict({name: nn.Linear(4, 4) for name in self.nets})
        self.head = nn.Linear(12, 1)

    def forward(self, audio, video, touch):
        inputs = {"audio": audio, "video": video, "touch": touch}
        last = [self.pools[name](self.nets[name](x)[0][:, -1]) for name, x in inputs.items()]
        return self.head(torch.cat(last, 1))


#: By model: its class, encoders, the arguments of its modalities with the shape of a sample, and its task.
MODELS = {
    "text-image": (
        TextImage, {"text": "bert", "image": "vit"},
        {"text": ("input_ids", (6,)), "image": ("pixel_values", (3, 8, 8))}, bmlr.tasks.Multiclass(3),
    ),
    "audio-text": (
        AudioText, {"audio": "lstm", "text": "read"},
        {"audio": ("audio", (7, 5)), "text": ("input_ids", (6,))}, bmlr.tasks.Multiclass(3),
    ),
    "regressor": (
        Regressor, {name: f"pools.{name}" for name in ("audio", "video", "touch")},
        {name: (name, (7, 5)) for name in ("audio", "video", "touch")}, bmlr.tasks.Regression(),
    ),
}  # fmt: skip
METHODS = ("Joint", "BMLR", "DGL", "OGMGE", "AGM", "MMPareto")


def make_rows(kind, count=SAMPLES, seed=0):
    """Samples as dictionaries of the arguments of the model's forward, and a label."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        label = number % 3
        row = {}
        for key, shape in MODELS[kind][2].values():
            if key == "input_ids":
                row[key] = torch.randint(4, 20, shape, generator=generator)
                row[key][1:3] = label + 1
            else:
                row[key] = torch.randn(shape, generator=generator) + 0.5 * label
        rows.append({**row, "labels": label if kind != "regressor" else label + 0.25})
    return rows


def make_model(kind):
    cls, encoders, arguments, task = MODELS[kind]
    torch.manual_seed(1)
    net = cls()
    rows = make_rows(kind, 4, seed=9)
    example = {key: torch.stack([row[key] for row in rows]) for key, _ in arguments.values()}
    inputs = {name: key for name, (key, _) in arguments.items()}
    return bmlr.wrap(net, encoders, example, inputs=inputs, task=task)


def make_data(kind):
    _, _, arguments, task = MODELS[kind]
    return from_datasets(
        *(make_rows(kind, seed=seed) for seed in (0, 1, 2)), target="labels", task=task, name=kind,
        modalities={name: key for name, (key, _) in arguments.items()},
    )  # fmt: skip


def make_batch(kind, seed=0):
    rows, (_, _, arguments, task) = make_rows(kind, seed=seed), MODELS[kind]
    inputs = {name: torch.stack([row[key] for row in rows]) for name, (key, _) in arguments.items()}
    targets = torch.tensor([row["labels"] for row in rows])
    return inputs, targets.float() if task.name == "regression" else targets


def by_balancer(kind, model, method, folder):
    balancer = bmlr.Balancer(model, method, torch.optim.SGD(model.parameters(), lr=RATE), max_epochs=EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        for batch in balancer.epoch([make_batch(kind)]):
            balancer.step(batch)


def by_hugging_face(kind, model, method, folder):
    arguments = TrainingArguments(
        str(folder / "hf"), num_train_epochs=EPOCHS, per_device_train_batch_size=SAMPLES, learning_rate=RATE,
        optim="sgd", lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=True, max_grad_norm=0.0, logging_strategy="no", seed=0,
    )  # fmt: skip
    BalancedTrainer(model, arguments, method=method, train_dataset=make_rows(kind)).train()


class Module(BalancedMixin, lightning.LightningModule):
    def __init__(self, model, method):
        super().__init__()
        self.net = model.net
        self.balance(model, method)

    def training_step(self, batch, batch_idx):
        return self.balanced_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def by_lightning(kind, model, method, folder):
    lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Module(model, method).train(), DataLoader([make_batch(kind)], batch_size=None))  # fmt: skip


def by_train(kind, model, method, folder):
    train(
        make_data(kind), method, model, OptimizerOptions(name="sgd", lr=RATE, momentum=0.0),
        TrainerOptions(epochs=EPOCHS, batch_size=SAMPLES, accelerator="cpu", progress=False), run=folder / "run",
    )  # fmt: skip
    bmlr.load(folder / "run", model=model, weights="last")  # it has those of the best epoch


@pytest.fixture
def same_draws(monkeypatch):
    """Heads and noise of methods do not depend on how often a trainer draws."""

    def fill(layer):
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                parameter.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) + 1.0).reshape(parameter.shape))

    monkeypatch.setattr(nn.Linear, "reset_parameters", fill)
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: torch.sin(torch.arange(x.numel()) * 1.0).reshape(x.shape))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_loop_trains_what_people_bring_to_the_same_weights(kind, name, tmp_path, same_draws):
    task = MODELS[kind][3]
    if task.name not in bmlr.methods.get(name).tasks:
        with pytest.raises(ValueError, match=f"{name} .*regression"):
            by_train(kind, make_model(kind), bmlr.methods.create(name), tmp_path)
        assert not (tmp_path / "run").exists()
        return
    start = make_model(kind).state_dict()
    states = {}
    for loop in (by_balancer, by_hugging_face, by_lightning, by_train):
        model = make_model(kind)
        loop(kind, model, bmlr.methods.create(name), tmp_path)
        states[loop.__name__] = model.state_dict()
    assert sum(not torch.equal(value, start[key]) for key, value in states["by_balancer"].items()) > len(start) / 2
    for loop, state in states.items():
        for key, value in states["by_balancer"].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6, msg=lambda t, at=(loop, key): f"{at}: {t}")


@pytest.mark.parametrize("kind", MODELS)
def test_what_people_bring_is_served_diagnosed_and_exported(kind, tmp_path):
    method = bmlr.methods.OGMGE()
    by_train(kind, make_model(kind), method, tmp_path)
    served = bmlr.load(tmp_path / "run", model=make_model(kind))
    inputs, targets = make_batch(kind, seed=2)
    with torch.no_grad():
        logits = served.method.predict(served.model(inputs)).logits
    assert len(logits) == SAMPLES
    export = export_model(served.model, inputs, tmp_path / "export", method=served.method, formats=["pt2"])
    assert export.differences["pt2"] < 1e-4
    program = torch.export.load(tmp_path / "export" / "model.pt2").module()
    torch.testing.assert_close(program(inputs)["logits"], logits, rtol=1e-4, atol=1e-5)
    plain = MODELS[kind][0]()  # without this library
    plain.load_state_dict(served.model.net.state_dict())
    arguments = {key: inputs[name] for name, (key, _) in MODELS[kind][2].items()}
    with torch.no_grad():
        output = plain.eval()(**arguments)
    output = output["logits"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(output, logits)
    if kind == "regressor":
        test = blind_modality_test(served.model, [(inputs, targets)], method=served.method)
        assert set(test.effects) == set(served.model.modalities)
    else:
        diagnosis = diagnose(served.model, [(inputs, targets)], method=served.method)
        accuracy = float((logits.argmax(1) == targets).float().mean())
        assert math.isclose(diagnosis.accuracy.value, accuracy, abs_tol=1e-6)
