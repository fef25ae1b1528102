import importlib
import inspect
import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

import bmlr.data
import bmlr.methods
from bmlr.cli import main
from bmlr.commands import COMMANDS
from bmlr.commands._explanations import read_texts
from bmlr.commands.help_pages import examples, format_help
from bmlr.commands.options import REQUIRED, Command, class_options
from bmlr.commands.parsing import read_arguments
from bmlr.data import Modality
from bmlr.data.sets.new_samples import list_new_samples

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


def test_warnings_of_the_library_are_sentences(capsys, monkeypatch):
    def warn(*_, **__):
        for place in (bmlr.data.__file__, json.__file__):
            print(warnings.formatwarning("Two\nlines.", UserWarning, place, 7), end="")
        raise ValueError("enough")

    usual = warnings.formatwarning
    monkeypatch.setattr("bmlr.data.inspection.inspect_data", warn)
    assert main(["inspect", "digits"]) == 2
    first, second = capsys.readouterr().out.split("\n", 1)
    assert first == "bmlr: warning: Two lines."
    assert second.startswith(f"{json.__file__}:7: UserWarning: Two")  # another's keeps its place
    assert warnings.formatwarning is usual


def test_train_evaluate_predict(tmp_path, capsys):
    arguments = [*BASE, "--method.alpha", "0.5", "--model.fusion=sum", "--trainer.epochs", "2", "--data.samples", "30"]
    assert main([*arguments, "--run", str(tmp_path / "r"), "--seed", "4"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2: validation accuracy" in printed
    assert "majority rate" in printed
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert config["method"] == {"class_path": "bmlr.methods.BMLR", "init_args": {"alpha": 0.5, "beta": 0.5}}
    assert config["data"]["init_args"]["samples"] == 30
    assert config["model"]["fusion"] == "sum"
    assert config["seed"] == 4

    assert main(["evaluate", str(tmp_path / "r")]) == 0
    accuracy = json.loads((tmp_path / "r" / "result.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in capsys.readouterr().out

    batch = Toy(samples=30).split("test").batch([0])
    for name, x in batch.inputs.items():
        np.save(tmp_path / f"{name}.npy", x[0].numpy())
    files = [f"{name}={tmp_path / name}.npy" for name in batch.inputs]
    assert main(["predict", str(tmp_path / "r"), *files, "--json"]) == 0
    (sample,) = json.loads(capsys.readouterr().out)
    assert set(sample["probabilities"]) == {"fused", "audio", "image"}
    assert sum(sample["probabilities"]["fused"].values()) == pytest.approx(1)
    assert sample["class"] == max(sample["probabilities"]["fused"], key=sample["probabilities"]["fused"].get)
    assert main(["predict", str(tmp_path / "r"), *files]) == 0
    assert "probability" in capsys.readouterr().out

    again = ["train", "--config", str(tmp_path / "r" / "config.yaml"), "--run", str(tmp_path / "r")]
    assert main(again) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert main([*again[:-1], str(tmp_path / "again")]) == 0
    first, second = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("r", "again"))
    assert first["test"] == second["test"]

    (tmp_path / "x.npy").write_bytes((tmp_path / "audio.npy").read_bytes())
    unclear = error_of(capsys, ["predict", str(tmp_path / "r"), str(tmp_path / "x.npy"), str(tmp_path / "x.npz")])
    assert "Write MODALITY=" in unclear
    twice = error_of(capsys, ["predict", str(tmp_path / "r"), *files, files[0]])
    assert "one file of 'audio' per sample" in twice


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
    assert not checkpoint.exists()  # the run was finished
    checkpoint.write_bytes(b"PK")
    assert "is damaged" in error_of(capsys, [*arguments, "--resume", "--seed", "0"])
    checkpoint.unlink()
    assert "interrupted" in error_of(capsys, [*arguments, "--resume", "false"])
    assert main([*arguments, "--resume"]) == 0


def test_a_nan_loss_fails_with_its_place(tmp_path, capsys):
    message = error_of(capsys, [*BASE, "--data.poison", "3", "--run", str(tmp_path / "r")])
    assert "not finite at epoch 1, step" in message


def test_the_methods_are_listed_with_their_facts(capsys, monkeypatch):
    assert main(["methods", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == bmlr.methods.available()
    by_name = {row["name"]: row for row in rows}
    assert by_name["BMLR"]["parameters"] == {"alpha": 1.0, "beta": 0.5}
    assert by_name["BMLR"]["tasks"] == ["multiclass", "multilabel"]
    assert by_name["BMLR"]["allows_absent_modalities"]
    assert not by_name["AGM"]["allows_absent_modalities"]
    assert (by_name["BMLR"]["min_modalities"], by_name["BMLR"]["max_modalities"]) == (2, None)
    assert all(row["paper"] and row["venue"] and row["family"] and row["cost"] for row in rows)
    assert main(["methods", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count(" | ") for line in lines} == {7}
    for width in (100, 200):  # a terminal of so many columns
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        assert main(["methods"]) == 0
        table = capsys.readouterr().out
        assert max(map(len, table.splitlines())) <= width
        assert "…" not in table  # nothing is cut off
        firsts = [line.split()[0] for line in table.splitlines() if line.strip()]
        assert [word for word in firsts if word in by_name] == bmlr.methods.available()
        assert "GRADIENT SCALE" in table
        assert "none absent" in table
        assert "ICCV 2023" in table


def test_the_numbers_of_modalities_of_a_method_are_shown_and_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs.py").write_text(
        "import bmlr\n"
        "class Pair(bmlr.methods.BMLR):\n    max_modalities = 2\n"
        "class Some(bmlr.methods.BMLR):\n    max_modalities = 3\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pairs", raising=False)
    for name, text in (("Pair", "exactly two"), ("Some", "two to three")):
        assert main(["methods", f"pairs.{name}"]) == 0
        assert f"modalities  {text}\n" in capsys.readouterr().out
    accuracies = ["--data.accuracy", "{a: 0.8, b: 0.6, c: 0.5}"]
    arguments = ["train", "synthetic", *accuracies, "--method", "pairs.Pair", "--run", str(tmp_path / "r")]
    assert "written for 2 modalities. Found a, b, c" in error_of(capsys, arguments)


def test_one_method_is_shown_with_its_formula(capsys):
    assert main(["methods", "agm", "--method.alpha", "2.5"]) == 0
    page = capsys.readouterr().out
    assert "Boosting Multi-modal Model Performance" in page
    assert "https://arxiv.org/abs/2308.07686" in page
    assert "parameters  alpha=2.5, " in page
    assert r"\kappa_u = \exp" in page
    assert "alpha: Strength" in page
    assert ":math:" not in page
    assert ">>>" not in page
    assert "``" not in page
    assert main(["methods", "AGM", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_modalities"] is None
    assert "one method. Found AGM, and CML too" in error_of(capsys, ["methods", "AGM", "CML"])
    assert "or a class of yours" in error_of(capsys, ["methods", "AGN"])


def help_of(capsys, *arguments):
    """Help page without its line breaks."""
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def command_of(name):
    return Command(name, importlib.import_module(f"bmlr.commands.{name}").execute)


def test_help_pages(capsys):
    assert "predict" in help_of(capsys, "--help")
    assert help_of(capsys, "--version") == f"bmlr {bmlr.__version__}"
    main_page = help_of(capsys, "train", "--help")
    for data in bmlr.data.available():
        assert data in main_page
    assert "--resume Continue an interrupted run." in main_page
    assert "learning rate" in main_page
    assert "--trainer.epochs" not in main_page.partition("groups of options")[2]
    for words in (["help", "train", "trainer"], ["train", "--trainer.help"], ["help", "train", "all"]):
        assert "--trainer.epochs N Number of epochs" in help_of(capsys, *words)
    for words in (["help", "train", "bmlr"], ["train", "--method.help", "BMLR"], ["train", "--method.help=BMLR"]):
        assert "--method.alpha X Temperature factor" in help_of(capsys, *words)
    assert "--data.root PATH" in help_of(capsys, "inspect", "--data.help", "manifest")
    assert "--data.poison N" in help_of(capsys, "help", "train", "toy.Toy")


def test_help_of_train_fits_two_screens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert lines[0] == "usage: bmlr train DATA --method NAME [options]"
    assert lines[4] == "example:"


def test_without_a_command_the_help_is_printed(capsys):
    printed = []
    for arguments in ([], ["help"], ["--help"], ["-h"]):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    names = [line.split()[0] for line in printed[0].split("commands:")[1].splitlines() if line.startswith("  ")]
    assert names == list(COMMANDS)
    assert names[:3] == ["prepare", "inspect", "train"]
    assert "Directory of a finished or interrupted run." in help_of(capsys, "help", "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_one_description(name):
    """List of commands, help and their page agree, in at most ten words."""
    function = importlib.import_module(f"bmlr.commands.{name}").execute
    assert inspect.getdoc(function).partition("\n")[0] == COMMANDS[name]
    assert len(COMMANDS[name].split()) <= 10
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert f"| `bmlr {name}` | {COMMANDS[name]} |" in page


@pytest.mark.parametrize(
    "docstring",
    [
        "Weights.\n\nFormula:\n:math:`w = 1`, and\n:math:`v = 2`.\n\nArgs:\n    rate: How fast.\n",
        "Weights.\n\nParameters\n----------\nrate : float\n    How fast.\n",
        "Weights.\n\n:param rate: How fast.\n",
    ],
    ids=["google", "numpy", "sphinx"],
)
def test_explanations_are_read_in_any_style(docstring):
    assert read_texts(type("Own", (), {"__doc__": docstring})) == {"rate": "How fast."}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """Every option has a sentence without words of Python, and every example of the page is understood."""
    command = command_of(name)
    options = [*command.positional, *command.all_options()]
    for data in bmlr.data.available() if "data" in command.classes else ():
        options += class_options(bmlr.data.get(data), "data.")
    for method in bmlr.methods.available() if "method" in command.classes else ():
        options += class_options(bmlr.methods.get(method), "method.")
    silent = [
        o.name
        for o in options
        if o.name not in {"config", "import"} and not read_texts(o.owner).get(o.name.rpartition(".")[2])
    ]
    assert silent == []
    for page in (format_help(command), format_help(command, "all")):
        assert not re.search(r"\bNone\b|NoneType|typing|Literal|Optional|Union|<class|__", page)
    lines = examples(command)
    assert lines
    for line in lines:
        program, given, *words = shlex.split(line)
        assert (program, given) == ("bmlr", name)
        assert all(option.name in read_arguments(command, words) for option in command.positional)


def test_defaults_are_shown():
    page = " ".join(format_help(command_of("train"), "all").split())
    assert "--seed N Seed of weights, order of samples and random transforms. (default 0)" in page
    assert "--optimizer.betas [X,...] Decay rates of Adam's moments. (default [0.9,0.999])" in page
    assert "(required)" in format_help(command_of("inspect"), "crema-d")
    assert command_of("predict").positional[1].default is REQUIRED


def read(name, *words):
    return read_arguments(command_of(name), words)


def test_words_become_arguments(monkeypatch, tmp_path):
    """Switches may stand alone, dashes and underscores are one, and the data set may come first."""
    assert type(read("inspect", "digits")["data"]).__name__ == "Digits"
    assert read("inspect", "--data=synthetic", "--data.num_classes", "4")["data"].num_classes == 4
    train = read("train", "digits", "--resume", "--method", "bmlr", "--method.beta=0", "--trainer.gradients")
    assert (train["resume"], train["method"].beta, train["trainer"].gradients) == (True, 0.0, True)
    assert read("train", "--resume", "no", "digits", "--method", "Joint")["resume"] is False
    assert read("train", "digits", "--method", "Joint", "--model.modalities", "audio")["model"].modalities == ("audio",)
    assert read("train", "digits", "--method", "CML", "--method.last_epoch", "none")["method"].last_epoch is None
    prepare = read("prepare", "ave", "a", "b", "--train-list", "x-y", "--val_list=z", "--allow-outside")
    options = prepare["options"]
    assert (options.train_list, options.val_list, options.allow_outside) == (Path("x-y"), Path("z"), True)
    compare = read("compare", "digits", "--methods", "Joint", "BMLR", "--seeds", "-1", "2", "--processes=3")
    assert (compare["methods"], compare["seeds"], compare["engine"].processes) == (["Joint", "BMLR"], [-1, 2], 3)
    assert read("reproduce", "fig1", "table1", "--data", "crema-d:root=x")["data"] == ["crema-d:root=x"]
    assert read("predict", "r", "-0a.mp4", "--json", "b c.mp4")["files"] == ["-0a.mp4", "b c.mp4"]
    assert read("predict", "r", "--", "--odd.mp4")["files"] == ["--odd.mp4"]


def test_the_command_line_counts_more_than_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {class_path: synthetic, init_args: {num_classes: 4}}\nmethod: BMLR\nseed: 3\nmodel: {width: 8}\n"
    )
    (tmp_path / "model.yaml").write_text("width: 4\nfusion: sum\n")
    arguments = read("train", "--seed", "5", "--config", str(path), "--data.dimensions", "7")
    assert (arguments["seed"], arguments["data"].num_classes, arguments["data"].dimensions) == (5, 4, 7)
    assert arguments["model"].width == 8
    arguments = read("train", "--config", str(path), "--data", "digits", "--model", str(tmp_path / "model.yaml"))
    assert type(arguments["data"]).__name__ == "Digits"
    assert (arguments["model"].width, arguments["model"].fusion) == (4, "sum")


def test_the_home_folder_is_known_everywhere(tmp_path, capsys, monkeypatch):
    """No shell expands ~ in --run=~/x, in quotes or in a YAML file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("data: {class_path: manifest, init_args: {root: ~/p}}\nmethod: Joint\n")
    arguments = read("train", "--run=~/x", "--config", "~/c.yaml")
    assert arguments["run"] == tmp_path / "x"
    assert arguments["data"].root == str(tmp_path / "p")
    assert read("inspect", "manifest", "--data.root=~/q")["data"].root == str(tmp_path / "q")
    assert read("prepare", "ave", "~/a", "~", "--train-list=~/l")["options"].train_list == tmp_path / "l"
    files = read("predict", "~/r", "audio=~/a.wav")["files"]
    (sample,) = list_new_samples(files, {"audio": Modality("spectrogram", (1, 4, 4))})
    assert sample.files == {"audio": tmp_path / "a.wav"}
    assert read("report", "~/r")["runs"] == [tmp_path / "r"]
    assert main(["reproduce", "table4", "--data", "manifest:root=~/none"]) == 2
    assert f"There is no prepared 'manifest' in {tmp_path}/none" in capsys.readouterr().err
    monkeypatch.setenv("HOME", "")
    assert read("evaluate", "~nobody-of-this-name/x")["run"] == Path("~nobody-of-this-name/x")


class HalfMade:
    """What a loader is whose making was stopped."""

    def __del__(self):
        raise AttributeError("no workers")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt("stopped"), 130), (ValueError("wrong"), 2)])
def test_what_an_error_leaves_half_made_adds_no_line(monkeypatch, capsys, error, status):
    def execute(_):
        half = HalfMade()
        try:
            raise error
        except BaseException as cause:
            raise type(cause)(f"{cause}: {len([half])}") from cause

    monkeypatch.setattr("bmlr.cli._execute", execute)
    assert main(["train"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{error}: 1")
