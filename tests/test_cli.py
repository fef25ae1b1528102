import importlib
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import bmlr.methods
from bmlr.cli import main
from bmlr.commands import COMMANDS
from bmlr.commands.parsing import complete_arguments, make_parser
from bmlr.data import MultimodalData
from bmlr.methods import Method

sys.path.insert(0, str(Path(__file__).parent / "training"))
from toy import Toy

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
BASE = ["train", "--data", "toy.Toy", "--method", "BMLR", *CPU]


def error_of(capsys, arguments):
    """Sentence on the error stream of a failing command."""
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
        (["tran"], "There is no command tran. Did you mean 'train'?"),
        (["--verbose"], "There is no command --verbose"),
        ([*BASE, "--model", "aliases.yaml"], "aliases are not taken"),
    ],
)
def test_bad_input_fails_with_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("aliases.yaml").write_text("fusion: &name sum\nstem: *name\n")
    assert message in error_of(capsys, arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: {class_path: digits}\nmethod: BMRL\n", "Did you mean 'BMLR'"),
        ("data: toy.Toy\nmethod: BMLR\nmodell: {fusion: sum}\n", "modell"),
        ("data: [", "is not a YAML file"),
        ("- 1", "should hold options by name"),
        ("data: &name toy.Toy\nmethod: *name\n", "aliases are not taken"),
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


def test_without_a_command_the_help_is_printed(capsys):
    printed = []
    for arguments in ([], ["help"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert all(f"\n    {name} " in printed[0].replace("\n              ", " ") for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["help", "evaluate"])
    assert "Directory of a finished or interrupted run." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_one_description(name):
    """List of commands, help and README agree, in at most ten words."""
    function = importlib.import_module(f"bmlr.commands.{name}").execute
    assert inspect.getdoc(function).partition("\n")[0] == COMMANDS[name]
    assert len(COMMANDS[name].split()) <= 10
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"| `bmlr {name}` | {COMMANDS[name]} |" in readme


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help(name):
    function = importlib.import_module(f"bmlr.commands.{name}").execute
    parser = make_parser(name, COMMANDS[name], function)
    silent = [action.dest for action in parser._actions if not (action.help or "").strip()]
    assert silent == []


def test_options_are_completed_for_the_parser():
    """Names become paths of classes, switches get values, options underscores, and a data set may come first."""

    def function(data: MultimodalData, method: Method, force: bool = False, train_list: str = "", n: int = 0):
        """Take options."""

    def complete(line):
        return " ".join(complete_arguments(line.split(), function))

    assert complete("digits --method bmlr --n 1") == "--data bmlr.data.Digits --method bmlr.methods.BMLR --n 1"
    assert complete("--data=digits --data.help digits") == "--data=bmlr.data.Digits --data.help bmlr.data.Digits"
    assert complete("--force --n 1") == "--force true --n 1"
    assert complete("--n 1 --force") == "--n 1 --force true"
    assert complete("--force no --force=yes") == "--force no --force=yes"
    assert complete("--train-list a-b --n -1") == "--train_list a-b --n -1"
    assert complete("--method.help --n 1") == "--method.help --n 1"
    assert complete_arguments([], function) == []
    given = ["--data", "crema-d:root=x", "digits"]
    assert complete_arguments(given, importlib.import_module("bmlr.commands.reproduce").execute) == given
