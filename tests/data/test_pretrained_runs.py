"""Runs of pretrained encoders: the data follows them, and the run is all that is needed to read it."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
import yaml
from table_fixtures import LABELS, write_samples, write_table
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel

import bmlr.data
import checkpoints
from bmlr.cli import main
from bmlr.config import ModelOptions, TrainerOptions, build_model
from bmlr.data import ArraySplit, Modality, MultimodalData
from bmlr.data.sets._table_store import prepare_table
from bmlr.data.store._options import PrepareOptions
from bmlr.methods import Joint
from bmlr.runs import find_runs, group_runs
from bmlr.training import load, train

QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.epochs",
    "1",
    "--trainer.progress",
    "false",
]
TRAINER = TrainerOptions(epochs=1, batch_size=8, accelerator="cpu", devices=1, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared table of photos of 24 pixels, and a checkpoint for images of 16."""
    root = tmp_path_factory.mktemp("pretrained")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = [[*row[:3], row[4], row[7]] for row in write_samples(root, clips=False)]
    table = write_table(root / "table.csv", rows, ["id", "label", "group", "photo", "age:vector"])
    options = PrepareOptions(workers=0, size=24, progress=False, max_rejected=0.9)
    prepare_table(table, root / "out", options)
    (root / "vit").mkdir()
    checkpoints.save_vit(root / "vit")
    return root


def words_of(folder, run, encoder):
    data = ["manifest", "--data.root", folder / "out", "--data.augment", "false"]
    words = ["train", *data, "--method", "BMLR", "--model.encoders.photo", encoder, "--run", run, *QUICK]
    return [str(word) for word in words]


def test_a_run_needs_neither_data_nor_checkpoint_to_predict(folder, tmp_path, capsys, monkeypatch):
    vit = shutil.copytree(folder / "vit", tmp_path / "vit")
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert main(words_of(folder, run, "hf/vit:frozen=true,pooling=cls")) == 0, capsys.readouterr().err
    part = yaml.safe_load((run / "config.yaml").read_text())["model"]["encoders"]["photo"]
    assert part["class_path"] == f"hf/{vit}"
    assert part["init_args"] == {"frozen": True, "pooling": "cls"}
    assert part["checkpoint"]["input"] == {"kind": "image", "size": [16, 16], "mean": [0.25] * 3, "std": [0.5] * 3}
    loaded = load(run)
    original = AutoModel.from_pretrained(vit).state_dict()
    for name, value in loaded.model.encoders["photo"].model.net.state_dict().items():
        assert torch.equal(value, original[name]), name  # frozen
    files = {"photo": folder / f"{LABELS[0]} 0.png", "age": folder / f"{LABELS[0]} 0 age.npy"}
    inputs, _ = loaded.read(files)
    stored = torch.from_numpy(bmlr.data.create("manifest", root=folder / "out").store.values("photo", 0).copy())
    expected = F.interpolate(stored.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(inputs["photo"], (expected / 255 - 0.25) / 0.5)
    before = loaded.predict(files)
    shutil.rmtree(vit)
    assert load(run).predict(files) == before
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run), *(f"{name}={path}" for name, path in files.items())]) == 0
    capsys.readouterr()


def test_a_changed_checkpoint_is_another_run(folder, tmp_path, capsys):
    vit = shutil.copytree(folder / "vit", tmp_path / "vit")
    run = tmp_path / "run"
    assert main(words_of(folder, run, f"hf/{vit}")) == 0
    again = tmp_path / "again"
    shutil.rmtree(vit)
    vit.mkdir()
    checkpoints.save_vit(vit, seed=1)
    capsys.readouterr()
    assert main(["train", "--config", str(run / "config.yaml"), "--run", str(again)]) == 2
    assert "is not the checkpoint that this run began with: its files have changed" in capsys.readouterr().err
    assert main(words_of(folder, again, f"hf/{vit}")) == 0
    digests = [json.loads((place / "result.json").read_text())["digest"] for place in (run, again)]
    assert digests[0] != digests[1]
    labels = list(group_runs(find_runs([tmp_path])))
    assert len(labels) == 2
    assert all("checkpoint=" in label and "hidden_size" not in label for label in labels)


@pytest.mark.parametrize(
    ("data", "encoder", "message"),
    [
        ("digits", "hf/{vit}", "wants images of 16×16 pixels with mean (0.25, 0.25, 0.25) and standard deviation"),
        ("digits", "hf/{vit}", "of kind 'image' and shape (1, 16, 16), and are made once, in its own way"),
        ("digits", "hf/{vit}", "add preprocessing=ignore"),
        ("digits", "hf/{vit}:frosen=true", "Found 'frosen'. Did you mean 'frozen'?"),
        ("digits", "hf/{vit}:frozen=1", "should be true or false. Found 1"),
        ("digits", "hf/{vit}:preprocessing=ignor", "Did you mean 'ignore'?"),
        ("digits", "hf/{vit}/../vot", "Did you mean 'vit'?"),
        ("digits", "timm/resnet18", 'Run: pip install "bmlr[timm]"'),
    ],
)
def test_what_the_data_cannot_follow_is_told(folder, tmp_path, capsys, monkeypatch, data, encoder, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    name = encoder.format(vit=folder / "vit")
    words = ["train", data, "--method", "Joint", "--model.encoders.image", name, "--run", tmp_path / "run", *QUICK]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_inputs_are_taken_as_they_are_where_that_is_asked(folder):
    data = bmlr.data.create("digits")
    part = f"hf/{folder / 'vit'}:preprocessing=ignore"
    model = build_model(data, ModelOptions(encoders={"image": part}))
    assert model.encoders["image"].num_features == 16
    table = bmlr.data.create("manifest", root=folder / "out")
    table.prepare()
    with pytest.raises(ValueError, match="cannot be the encoder of a modality of kind 'vector'"):
        build_model(table, ModelOptions(encoders={"age": part}))


class Texts(MultimodalData):
    """Classes told by tokens and by a vector."""

    name = "texts"
    defaults = bmlr.data.TrainingDefaults(epochs=1, batch_size=8, lr=1e-2, width=2)
    protocol = "clean"
    classes = ("a", "b")
    modalities = {"text": Modality("text", (6,)), "age": Modality("vector", (2,))}

    def prepare(self):
        pass

    def split(self, name):
        rng = np.random.default_rng(len(name))
        targets = np.arange(16) % 2
        ids = rng.integers(5, 15, (16, 6)) + 10 * targets[:, None]
        ids[:, 4:] *= rng.integers(0, 2, (16, 1))
        return ArraySplit({"text": ids, "age": rng.normal(size=(16, 2))}, targets)

    def load_files(self, files, modalities=None):
        raise NotImplementedError


def test_tokens_train_a_text_encoder(tmp_path):
    (tmp_path / "bert").mkdir()
    checkpoints.save_bert(tmp_path / "bert")
    model = ModelOptions(encoders={"text": f"hf/{tmp_path / 'bert'}:preprocessing=ignore,gradient_checkpointing=true"})
    result = train(Texts(), Joint(), model, trainer=TRAINER, run=tmp_path / "run")
    assert load(tmp_path / "run").model.encoders["text"].model.pooling == "mean"
    assert result.content["test"]["accuracy"] >= 0.5
    with pytest.raises(ValueError, match="wants tokens of the tokeniser of .*Inputs of texts are of kind 'text'"):
        train(Texts(), Joint(), ModelOptions(encoders={"text": f"hf/{tmp_path / 'bert'}"}), trainer=TRAINER)
