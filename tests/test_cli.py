import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import bmlr.methods
from bmlr.cli import main

sys.path.insert(0, str(Path(__file__).parent / "training"))
from toy import Toy

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
BASE = ["train", "--data", "toy.Toy", "--method", "BMLR", *CPU]


def error_of(capsys, arguments):
    """The one sentence on the error stream of a command that fails."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bmlr: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_train_evaluate_predict(tmp_path, capsys):
    arguments = [*BASE, "--method.alpha", "0.5", "--model.fusion=sum", "--trainer.epochs", "2", "--data.samples", "30"]
    assert main([*arguments, "--run", str(tmp_path / "r"), "--seed", "4"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2: validation accuracy" in printed
    assert "majority rate" in printed
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert config["method"] == {"class_path": "bmlr.methods.BMLR", "init_args": {"alpha": 0.5, "beta": 0.1}}
    assert config["data"]["init_args"]["samples"] == 30
    assert config["model"]["fusion"] == "sum"
    assert config["seed"] == 4

    assert main(["evaluate", str(tmp_path / "r")]) == 0
    accuracy = json.loads((tmp_path / "r" / "result.json").read_text())["test"]["accuracy"]
    assert f"{accuracy:.4f}" in capsys.readouterr().out

    batch = Toy(samples=30).split("test").batch([0])
    for name, x in batch.inputs.items():
        np.save(tmp_path / f"{name}.npy", x[0].numpy())
    files = [f"{name}={tmp_path / name}.npy" for name in batch.inputs]
    assert main(["predict", str(tmp_path / "r"), *files, "--json"]) == 0
    probabilities = json.loads(capsys.readouterr().out)
    assert set(probabilities) == {"fused", "audio", "image"}
    assert sum(probabilities["fused"].values()) == pytest.approx(1)
    assert main(["predict", str(tmp_path / "r"), *files]) == 0
    assert "probability" in capsys.readouterr().out

    again = ["train", "--config", str(tmp_path / "r" / "config.yaml"), "--run", str(tmp_path / "r")]
    assert main(again) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert main([*again[:-1], str(tmp_path / "again")]) == 0
    first, second = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("r", "again"))
    assert first["test"] == second["test"]

    unclear = error_of(capsys, ["predict", str(tmp_path / "r"), str(tmp_path / "audio.npy")])
    assert "Write MODALITY=" in unclear
    twice = error_of(capsys, ["predict", str(tmp_path / "r"), files[0], files[0]])
    assert "Found two of 'audio'" in twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "digts", "--method", "BMLR"], "Did you mean 'digits'"),
        (["train", "--data", "digits", "--method", "BMRL"], "Did you mean 'BMLR'"),
        ([*BASE, "--model.fusion", "flim"], "Did you mean 'film'"),
        ([*BASE, "--method.alpha", "-1"], "`alpha` should be a positive finite number. Found `alpha = -1.0`"),
        ([*BASE, "--method.beta", "1.5"], "`beta` should lie in [0, 1]. Found `beta = 1.5`"),
        ([*BASE, "--method.alhpa", "1"], "'alhpa' is not accepted"),
        ([*BASE, "--trainer.epochs", "many"], "--trainer.epochs should be of type int or NoneType. Found many"),
        ([*BASE, "--run", "/dev/null/run"], "The run folder /dev/null/run cannot be written"),
        (["train", "--data", "avmnist", "--data.root", "/nowhere", "--method", "BMLR"], "/nowhere"),
        (["train", "--config", "nowhere.yaml"], "There is no configuration file nowhere.yaml"),
        (["evaluate", "nowhere"], "There is no run in nowhere"),
        (["predict", "nowhere", "a.wav"], "There is no run in nowhere"),
        (["train", "--data", "digits"], "method"),
        (["tran"], "tran"),
    ],
)
def test_bad_input_fails_with_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: {class_path: digits}\nmethod: BMRL\n", "Did you mean 'BMLR'"),
        ("data: toy.Toy\nmethod: BMLR\nmodell: {fusion: sum}\n", "modell"),
        ("data: [", "is not a YAML file"),
        ("- 1", "should hold options by name"),
    ],
)
def test_a_bad_configuration_fails_with_one_sentence(capsys, tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    assert message in error_of(capsys, ["train", "--config", str(tmp_path / "c.yaml")])


def test_interrupted_runs_continue_on_request(tmp_path, capsys):
    arguments = [*BASE, "--run", str(tmp_path / "r")]
    assert main(arguments) == 0
    (tmp_path / "r" / "result.json").unlink()
    assert "--resume" in error_of(capsys, arguments)
    checkpoint = tmp_path / "r" / "last.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:300])
    assert "is damaged" in error_of(capsys, [*arguments, "--resume", "--seed", "0"])
    checkpoint.write_bytes(whole)
    assert "interrupted" in error_of(capsys, [*arguments, "--resume", "false"])
    assert main([*arguments, "--resume"]) == 0


def test_a_nan_loss_fails_with_its_place(tmp_path, capsys):
    message = error_of(capsys, [*BASE, "--data.poison", "3", "--run", str(tmp_path / "r")])
    assert "not finite at epoch 0, step" in message


def test_the_methods_are_listed_with_their_papers(capsys):
    assert main(["methods", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == bmlr.methods.available()
    by_name = {row["name"]: row for row in rows}
    assert by_name["BMLR"]["parameters"] == {"alpha": 1.0, "beta": 0.1}
    assert all(row["paper"] and row["venue"] and row["family"] and row["cost"] for row in rows)
    assert main(["methods"]) == 0
    assert "Label Space" in capsys.readouterr().out
    assert main(["methods", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count(" | ") for line in lines} == {5}


def test_help_is_made_from_the_docstrings(capsys):
    for arguments, expected in (
        (["--help"], "predict"),
        (["train", "--help"], "Learning rate; None takes the data set's"),
        (["train", "--method.help", "BMLR"], "Temperature factor"),
        (["--version"], "bmlr "),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code
        assert expected in " ".join(capsys.readouterr().out.split())
