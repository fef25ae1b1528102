"""A user's own class on the command line, and what the pages on data tell a reader to type."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bmlr.data
from bmlr.cli import main

DOCS = Path(__file__).parents[2] / "docs"
BMLR = Path(sys.executable).with_name("bmlr")
MODULE = '''
import numpy as np
import torch
from bmlr.data import ArraySplit, Modality, MultimodalData, TrainingDefaults

print("the module runs")


class Mine(MultimodalData):
    """Noise.

    Args:
        samples: Samples per split.
    """

    name = "mine"
    protocol = "clean"
    classes = ("a", "b")
    modalities = {"x": Modality("vector", (3,)), "y": Modality("vector", (2,))}
    defaults = TrainingDefaults(epochs=1, batch_size=8, lr=1e-3, width=2)

    def __init__(self, samples: int = 10) -> None:
        self.samples = samples

    def prepare(self) -> None:
        pass

    def split(self, name):
        rng = np.random.default_rng(len(name))
        inputs = {u: rng.normal(size=(self.samples, *form.shape)) for u, form in self.modalities.items()}
        return ArraySplit(inputs, np.arange(self.samples) % 2)

    def load_files(self, files):
        return {u: torch.from_numpy(np.load(path)).float()[None] for u, path in files.items()}
'''


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page):
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("bmlr ")]


def run(folder, *arguments):
    """The installed command in a folder, with nothing in the environment that could help Python find a module."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(  # noqa: S603
        [str(BMLR), *arguments], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory with a module inside a package, and a run on its class."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my").mkdir()
    (folder / "my" / "module.py").write_text(MODULE)
    arguments = ["--data", "my.module.Mine", "--data.samples", "12", "--method", "BMLR", "--run", "r"]
    done = run(folder, "train", *arguments, "--trainer.accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_class_in_the_working_directory_trains_by_its_path(trained):
    result = json.loads((trained / "r" / "result.json").read_text())
    assert result["data"] == "mine"
    assert result["samples"] == {"train": 12, "val": 12, "test": 12}
    assert "class_path: my.module.Mine" in (trained / "r" / "config.yaml").read_text()


def test_reading_a_run_runs_no_code_unless_told(trained, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.chdir(trained)
        patch.setattr(sys, "path", list(sys.path))
        assert main(["evaluate", "r"]) == 2
    refused = capsys.readouterr()
    assert (
        "'my.module.Mine' is a data set of your own: import its module first, on the command line by --import my."
        in " ".join(refused.err.split())
    )
    assert "the module runs" not in refused.out
    assert "my.module" not in sys.modules
    told = run(trained, "evaluate", "r", "--import", "my.module")
    assert told.returncode == 0, told.stderr
    accuracy = json.loads((trained / "r" / "result.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.1f} %" in told.stdout
    assert "test split: 12 samples" in told.stdout
    assert "These are few" in told.stdout
    assert "the module runs" in told.stdout


def test_modules_that_are_not_there_are_named(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for arguments, message in (
        (["evaluate", "r", "--import", "my.modul"], "Option --import: my.modul cannot be imported: No module named"),
        (["inspect", "modul.Mine"], "No module named 'modul'"),
        (["train", "--data", "digts", "--method", "BMLR"], "Did you mean 'digits'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_the_working_directory_comes_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "json.py").write_text("raise SystemExit('taken from the working directory')")
    assert main(["inspect", "json.JSONDecoder"]) == 2
    assert sys.path[-1] == str(tmp_path)
    assert "taken" not in str(sys.modules["json"])


def test_the_class_of_the_page_runs_as_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scripts = {re.match(r"# (\w+\.py)\n", block)[1]: block for block in blocks("own-data.md", "python")}
    exec(scripts["make_sensors.py"], {})  # noqa: S102  (the project's own text)
    (tmp_path / "sensors.py").write_text(scripts["sensors.py"])
    wanted = [line for line in commands("own-data.md") if "sensors" in line]
    assert [shlex.split(line)[1] for line in wanted] == ["inspect", "train", "evaluate", "predict"]
    for line in wanted:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sensors")
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "probability" in printed
    assert "class_path: sensors.Sensors" in (tmp_path / "runs" / "sensors" / "config.yaml").read_text()
    (tmp_path / "c.yaml").write_text(
        next(block for block in blocks("own-data.md", "yaml") if "class_path" in block) + "method: BMLR\n"
    )
    assert main(["train", "--config", "c.yaml", "--run", "other"]) == 2
    assert "There is no train.npz in elsewhere" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sensors")


def test_the_table_of_the_page_runs_as_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("own-data.md", "python") if block.startswith("# make_pets.py")]
    exec(block, {})  # noqa: S102  (the project's own text)
    head = (tmp_path / "pets" / "table.csv").read_text().splitlines()[0]
    assert blocks("own-data.md", "csv")[0].splitlines()[0] == head
    wanted = [line for line in commands("own-data.md") if "pets" in line or "--data.root prepared" in line]
    assert len(wanted) == 5
    for line in wanted:
        more = ["--workers", "0", "--progress", "false"] if " prepare " in line else []
        assert main([*shlex.split(line)[1:], *more]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "0 rejected" in printed
    assert "probability" in printed


def test_the_datasets_of_the_page_run_as_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("own-data.md", "python") if block.startswith("# notes.py")]
    exec(block, {"__name__": "notes"})  # noqa: S102  (the project's own text)
    printed = capsys.readouterr().out
    assert "multiclass ('summer', 'winter') {'sensor': 'vector', 'note': 'text'}" in printed
    assert "True\ndict_keys(['fused', 'sensor', 'note'])" in printed


def test_the_tables_of_labels_and_numbers_of_the_page_run_as_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("own-data.md", "python") if block.startswith("# make_notes.py")]
    exec(block, {})  # noqa: S102  (the project's own text)
    wanted = [line for line in commands("own-data.md") if "notes/" in line or "--data.root with-" in line]
    assert [shlex.split(line)[1] for line in wanted] == ["prepare", "train", "predict"] * 2
    for line in wanted:
        more = ["--workers", "0", "--progress", "false"] if " prepare " in line else []
        more = ["--trainer.accelerator", "cpu"] if " train " in line else more
        assert main([*shlex.split(line)[1:], *more]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "2 labels, any number per sample, 60 samples, 0 rejected" in printed
    assert "numbers as targets, 60 samples, 0 rejected" in printed
    assert printed.count("probabilities") == 1
    assert printed.count("target") > 1


class ReachedError(ValueError):
    """Raised in place of the work behind a command that was understood."""


def test_the_page_with_one_file_of_arrays_works_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("own-data.md", "python") if block.startswith("# make_views.py")]
    exec(block, {})  # noqa: S102  (the page's own)
    lines = [line for line in commands("own-data.md") if "views" in line or "new-walk" in line]
    assert len(lines) == 4
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    said = capsys.readouterr().out
    assert "walk: sequence 10×4" in said
    Path("views.yaml").write_text(next(b for b in blocks("own-data.md", "yaml") if "img_feats" in b), encoding="utf-8")
    assert main(["inspect", "arrays", "--data.file", "views.npz"]) == 0
    again = capsys.readouterr().out
    assert said.startswith(again.partition("Samples of each class")[0])


@pytest.mark.parametrize("line", commands("data.md"))
def test_every_command_on_the_page_of_data_sets_is_understood(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def reached(*_, **__):
        raise ReachedError("the command was understood")

    for name in (
        "bmlr.commands.prepare.prepare",
        "bmlr.data.inspection.inspect_data",
        "bmlr.training.train",
        "bmlr.training.evaluate_run",
        "bmlr.training.load",
    ):
        monkeypatch.setattr(name, reached)
    assert main(shlex.split(line)[1:]) == 2
    assert capsys.readouterr().err == "bmlr: error: the command was understood\n"


def test_every_data_set_has_a_page_with_every_step():
    lines = commands("data.md")
    for name in bmlr.data.available():
        if name in {"manifest", "arrays"}:
            continue
        steps = [line.split()[1] for line in lines if re.search(rf"(?<![\w-]){name}(?![\w-])", line)]
        decoded = ["prepare"] if hasattr(bmlr.data.get(name), "convert") else []
        assert list(dict.fromkeys(steps)) == [*decoded, "inspect", "train", "evaluate", "predict"], name
