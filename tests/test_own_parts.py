"""Encoders and fusions by class path, in every command that trains or reads a run."""

import functools
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import own_parts
from bmlr.cli import main
from bmlr.commands.options import Command
from bmlr.commands.parsing import read_arguments
from bmlr.config import ModelOptions, TrainerOptions, build_model, read_config
from bmlr.methods import Joint
from bmlr.training import load, train
from toy import Toy

QUICK = [
    "--trainer.epochs",
    "1",
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.progress",
    "false",
]
TRAINER = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False)


def run_command(words, capsys):
    """Exit status, output and error of a command."""
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_the_ways_of_naming_a_part_are_one_configuration():
    by_object = ModelOptions(encoders={"image": functools.partial(own_parts.Net, width=8)}, fusion=own_parts.Late)
    by_text = ModelOptions(encoders={"image": "own_parts.Net:width=8"}, fusion="own_parts.Late")
    entry = {"class_path": "own_parts.Net", "init_args": {"width": 8}}
    by_entry = ModelOptions(encoders={"image": entry}, fusion={"class_path": "own_parts.Late"})
    assert by_object == by_text == by_entry
    model = build_model(Toy(), by_text)
    assert type(model.encoders["image"]) is own_parts.Net
    assert model.encoders["image"].layers[1].in_features == 64  # it got the form of its input
    assert type(model.fusion) is own_parts.Late
    assert model.fusion.feature_dims == {"audio": 8, "image": 8}


def test_a_width_that_is_not_told_is_found_by_a_trial():
    model = build_model(Toy(), ModelOptions(encoders={"audio": "own_parts.Untold:width=7"}))
    assert model.fusion.feature_dims["audio"] == 7


def test_compare_trains_own_parts_and_evaluate_reads_them(tmp_path, capsys, monkeypatch):
    """The processes of a comparison are new ones, and the module lies in their working directory."""
    (tmp_path / "mymodel.py").write_text("import own_parts\n\nclass Wide(own_parts.Net): pass\nVote = own_parts.Late\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(own_parts.__file__).parent), "OMP_NUM_THREADS": "1"}
    model = ["--model.fusion", "mymodel.Vote:temperature=2", "--model.encoders.image", "mymodel.Wide:width=6"]
    words = ["compare", "toy.Toy", "--methods", "BMLR", "--seeds", "0", *model, "--runs", "runs", *QUICK]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bmlr", *words],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "runs").glob("toy-BMLR-*"))
    entries = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert entries["encoders"] == {"image": {"class_path": "mymodel.Wide", "init_args": {"width": 6}}}
    assert entries["fusion"] == {"class_path": "mymodel.Vote", "init_args": {"temperature": 2}}
    monkeypatch.syspath_prepend(tmp_path)
    status, _, unknown = run_command(["evaluate", run, "--import", "toy"], capsys)
    assert status == 2
    assert "'mymodel.Wide' is an encoder of your own: import its module first" in unknown
    assert "--import mymodel" in unknown
    status, _, error = run_command(["evaluate", run, "--import", "toy,mymodel"], capsys)
    sys.modules.pop("mymodel")
    assert status == 0, error


@pytest.mark.parametrize("command", ["tune --space alpha=0:1", "compare", "reproduce table1"])
def test_grids_take_the_same_options(command):
    name, *words = command.split()
    if name != "reproduce":
        words += ["--data", "toy.Toy", "--methods", "BMLR"]
    function = importlib.import_module(f"bmlr.commands.{name}").execute
    arguments = read_arguments(Command(name, function), [*words, "--model.encoders.image", "own_parts.Net:width=6"])
    assert arguments["model"].encoders == {"image": {"class_path": "own_parts.Net", "init_args": {"width": 6}}}


def test_train_diagnose_and_predict_with_own_parts(tmp_path, capsys):
    run = tmp_path / "run"
    entry = "{image: {class_path: own_parts.Net, init_args: {width: 8, layers: [4, 4]}}}"
    words = ["train", "toy.Toy", "--method", "BMLR", "--model.encoders", entry, "--model.fusion", "own_parts.Late"]
    status, _, error = run_command([*words, "--run", run, *QUICK], capsys)
    assert status == 0, error
    status, _, error = run_command(["diagnose", run, "--import", "own_parts"], capsys)
    assert status == 0, error
    again, _, error = run_command(["train", "--config", run / "config.yaml", "--run", tmp_path / "again"], capsys)
    assert again == 0, error
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first["test"] == second["test"]
    assert first["digest"] == second["digest"]
    model = load(run).model
    assert [layer.out_features for layer in model.encoders["image"].layers if isinstance(layer, torch.nn.Linear)] == [
        4, 4, 8,
    ]  # fmt: skip


def test_an_entry_typed_counts_more_than_that_of_a_file(tmp_path, capsys):
    options = tmp_path / "model.yaml"
    options.write_text("encoders: {image: own_parts.Net, audio: own_parts.Net}\nfusion: own_parts.Late\n")
    words = [
        "train",
        "toy.Toy",
        "--method",
        "Joint",
        "--model",
        options,
        "--model.encoders.image",
        "own_parts.make_net",
    ]
    status, _, error = run_command([*words, "--run", tmp_path / "run", *QUICK], capsys)
    assert status == 0, error
    config = read_config(tmp_path / "run" / "config.yaml")
    assert {name: part["class_path"] for name, part in config.model.encoders.items()} == {
        "audio": "own_parts.Net",
        "image": "own_parts.make_net",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.fusion", "own_parts.Lat"], "own_parts should hold the fusion Lat"),
        (["--model.fusion", "own_parts.Lat"], "Did you mean 'Late'?"),
        (["--model.fusion", "concatt"], "Did you mean 'concat'?"),
        (["--model.fusion", "own_parts.Net"], "derived from bmlr.fusion.Fusion"),
        (["--model.fusion", "nowhere.Late"], "Options --model: nowhere cannot be imported"),
        (["--model.fusion", "own_parts.Late:heat=2"], "Fusion own_parts.Late cannot be made"),
        (["--model.encoders.imag", "own_parts.Net"], "Found 'imag'. Did you mean 'image'?"),
        (["--model.encoders.image", "TransformerEncodr"], "Did you mean 'TransformerEncoder'?"),
        (["--model.encoders.image", "own_parts.Net:width"], "should be written NAME or NAME:parameter=value"),
        (["--model.encoders.audio", "own_parts.Unfit"], "tell its width by an attribute `num_features`"),
        (["--model.encoders.audio", "own_parts.Unfit"], "no weights are here"),
        (["--model.encoders.audio", "own_parts.Pair"], "tuple of (2, 4), (2, 4)"),
        (["--model.encoders", "{image: [1, 2]}"], "Encoder 'image' should be a name, a class or a function"),
    ],
)
def test_wrong_parts_get_one_sentence(tmp_path, capsys, options, message):
    words = ["train", "toy.Toy", "--method", "Joint", *options, "--run", tmp_path / "run", *QUICK]
    status, _, error = run_command(words, capsys)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_reading_a_run_calls_no_function_that_the_user_did_not_name(tmp_path, capsys, monkeypatch):
    """Of a file from elsewhere, any imported function could be called with any arguments."""
    monkeypatch.setattr("bmlr.config._parts._trusted", set())  # not what tests before it have named
    run = tmp_path / "run"
    train(Toy(), Joint(), ModelOptions(encoders={"image": own_parts.Net}), trainer=TRAINER, run=run)
    mark = tmp_path / "mark"
    config = run / "config.yaml"
    text = config.read_text().partition("\n")[2]
    entries = yaml.safe_load(text)
    entries["model"]["encoders"]["image"] = {"class_path": "os.mkdir", "init_args": {"path": str(mark)}}
    config.write_text(yaml.safe_dump(entries, sort_keys=False))
    status, _, error = run_command(["evaluate", run], capsys)
    assert status == 2
    assert "'os.mkdir' is a function" in error
    assert not mark.exists()


def test_the_model_of_the_page_trains(tmp_path, monkeypatch, capsys):
    """The page's module and commands, as they are printed."""
    page = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text(encoding="utf-8")
    section = page.partition("## Encoders and fusions by path")[2].partition("\n## ")[0]
    (module,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    lines = re.findall(r"^bmlr (.*)$", section, flags=re.MULTILINE)
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mymodel.py").write_text(module)
    for line in lines:
        words = shlex.split(line)
        read_arguments(Command(words[0], importlib.import_module(f"bmlr.commands.{words[0]}").execute), words[1:])
    status, _, error = run_command([*shlex.split(lines[0]), "--model.width", "2", *QUICK], capsys)
    assert status == 0, error
    status, _, error = run_command(["evaluate", "runs/own", "--import", "mymodel"], capsys)
    assert status == 0, error
