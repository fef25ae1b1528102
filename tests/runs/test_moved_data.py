"""A run is used where it and its data are moved: by commands, as a user types them."""

import csv
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bmlr.data
from bmlr._files import json_text, parse_json
from bmlr.cli import main
from bmlr.data.sets.new_samples import list_new_samples
from bmlr.runs import DirectoryLock, find_runs, group_runs

OPTIONS = [
    "--method", "Joint", "--model.width", "2", "--trainer.epochs", "1", "--trainer.progress", "false",
    "--trainer.accelerator", "cpu",
]  # fmt: skip


def write_table(folder, shift=0.0):
    """A table of 40 samples of two vectors that tell the class; every fifth lacks the second."""
    folder.mkdir()
    rows = ["id,label,x:vector,y:vector"]
    for number in range(40):
        rng = np.random.default_rng(number)
        np.save(folder / f"x{number}.npy", (rng.normal(size=3) + 3 * (number % 2) + shift).astype("float32"))
        np.save(folder / f"y{number}.npy", (rng.normal(size=2) + 3 * (number % 2)).astype("float32"))
        rows.append(
            f"s{number},{'dog' if number % 2 else 'cat'},x{number}.npy,{f'y{number}.npy' if number % 5 else ''}"
        )
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def execute(capsys, *words, status=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else " ".join(captured.err.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a table, its prepared data, and a run, made by relative paths."""
    folder = tmp_path_factory.mktemp("home")
    write_table(folder / "files")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["prepare", "manifest", "files/table.csv", "prepared", "--workers", "0"]) == 0
        assert main(["train", "--data", "manifest", "--data.root", "prepared", *OPTIONS, "--run", "runs/m"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    # Its data is to be looked for where the run was trained: that place is another one here.
    config = tmp_path / "home" / "runs" / "m" / "config.yaml"
    lines = config.read_text().splitlines()[1:]
    config.write_text("\n".join(lines).replace(str(home), str(tmp_path / "home")) + "\n")
    return tmp_path / "home"


def test_a_run_is_used_from_any_directory(home, capsys, monkeypatch):
    accuracy = json.loads((home / "runs" / "m" / "result.json").read_text())["test"]["accuracy"]
    monkeypatch.chdir("/")
    assert f"{100 * accuracy:.1f} %" in execute(capsys, "evaluate", home / "runs" / "m")
    predicted = execute(capsys, "predict", home / "runs" / "m", f"x={home}/files/x1.npy", f"y={home}/files/y1.npy")
    assert "dog" in predicted


def test_the_same_data_by_another_path_is_the_same_run(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    train = ["train", "--data", "manifest", *OPTIONS]
    assert "nothing was trained" in execute(capsys, *train, "--data.root", copy / "prepared", "--run", "runs/m")
    (copy / "prepared").rename(copy / "scratch")
    recorded = " ".join(execute(capsys, "evaluate", "runs/m").split())
    assert "The data of runs/m is missing" in recorded
    assert "--data.root FOLDER. These are the scores recorded when the run was finished." in recorded
    for words in (["evaluate", "runs/m", "--weights", "last"], ["diagnose", "runs/m"]):
        assert "--data.root FOLDER." in execute(capsys, *words, status=2)
    assert "no prepared 'manifest' in nowhere" in execute(
        capsys, "evaluate", "runs/m", "--data.root", "nowhere", status=2
    )
    whole = execute(capsys, "evaluate", "runs/m", "--data.root", "scratch")
    assert "test split: 4 samples" in whole
    assert "These are few" in whole
    assert recorded.endswith(" ".join(whole.split()))
    execute(capsys, "diagnose", "runs/m", "--data.root", "scratch", "--out", "d")
    parse_json((copy / "d" / "diagnosis.json").read_text())
    assert "nothing was trained" in execute(capsys, *train, "--data.root", "scratch", "--run", "runs/m", "--resume")
    # Interrupted: the checkpoint is of the same data, wherever that is now.
    (copy / "runs" / "m" / "result.json").unlink()
    execute(capsys, *train, "--data.root", "scratch", "--run", "runs/m", "--resume")
    assert "test split: 4 samples" in execute(capsys, "evaluate", "runs/m")  # the new place is recorded
    # Names in a folder of runs: of the content, not of the path.
    execute(capsys, *train, "--data.root", "scratch", "--runs", "named")
    assert "nothing was trained" in execute(capsys, *train, "--data.root", copy / "scratch", "--runs", "named")
    assert len(list((copy / "named").iterdir())) == 1
    # A search is the same with its data elsewhere, and makes no trial twice.
    tune = ["tune", "--data", "manifest", "--methods", "BMLR", "--space", "beta=0.1|0.5", "--sampler", "grid"]
    tune += [*OPTIONS[OPTIONS.index("Joint") + 1 :], "--out", "search"]
    execute(capsys, *tune, "--data.root", "scratch")
    trials = (copy / "search" / "trials.csv").read_text()
    (copy / "scratch").rename(copy / "again")
    execute(capsys, *tune, "--data.root", copy / "again")
    assert (copy / "search" / "trials.csv").read_text() == trials


def test_other_data_is_refused_and_is_another_configuration(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    write_table(copy / "others", shift=1.0)
    execute(capsys, "prepare", "manifest", "others/table.csv", "other", "--workers", "0")
    refused = execute(capsys, "evaluate", "runs/m", "--data.root", "other", status=2)
    assert "other does not hold the data that runs/m was trained on" in refused
    train = ["train", "--data", "manifest", *OPTIONS, "--data.root", "other"]
    assert "holds another run" in execute(capsys, *train, "--run", "runs/m", status=2)
    (copy / "runs" / "m" / "result.json").unlink()
    assert "on other data" in execute(capsys, *train, "--run", "runs/m", "--resume", status=2)
    shutil.copytree(copy.parent / "home" / "runs", copy / "x")
    execute(capsys, *train, "--runs", "runs")
    execute(capsys, "train", "--data", "manifest", *OPTIONS, "--data.root", "prepared", "--runs", "runs")
    groups = group_runs(record for record in find_runs(["runs"]) if record.state == "finished")
    assert len(groups) == 2  # runs on two data sets are no seeds of one configuration
    assert all("data.content=" in label for label in groups)


def test_a_run_predicts_without_its_data(copy, tmp_path, capsys, monkeypatch):
    expected = json.loads(
        execute(capsys, "predict", copy / "runs" / "m", f"x={copy}/files/x1.npy", f"y={copy}/files/y1.npy", "--json")
    )
    shutil.move(copy / "runs" / "m", tmp_path / "elsewhere")
    shutil.move(copy / "files", tmp_path / "new")
    shutil.rmtree(copy)
    monkeypatch.chdir(tmp_path)
    alone = json.loads(execute(capsys, "predict", "elsewhere", "x=new/x1.npy", "y=new/y1.npy", "--json"))
    assert alone[0]["probabilities"] == expected[0]["probabilities"]
    # Many samples: a table, one of whose files is unreadable and one of whose samples lacks a modality.
    (tmp_path / "new" / "x3.npy").write_bytes(b"no array")
    (tmp_path / "new" / "new.csv").write_text("id,y,x,note\na,y1.npy,x1.npy,!\nb,y3.npy,x3.npy,\nc,,x5.npy,\n")
    words = ["predict", "elsewhere", "new/new.csv", "--out", "out.csv"]
    message = execute(capsys, *words, status=2)
    assert "bmlr: b cannot be predicted: new/x3.npy" in message
    assert "1 of 3 samples could not be predicted: b." in message
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(row["sample"], row["class"], bool(row["error"])) for row in rows] == [
        ("a", "dog", False), ("b", "", True), ("c", "dog", False),
    ]  # fmt: skip
    assert float(rows[0]["P(dog)"]) == pytest.approx(expected[0]["probabilities"]["fused"]["dog"])
    assert rows[2]["class by y"] == ""
    # Names with a dash in front, and of the home folder.
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    shutil.copy(tmp_path / "new" / "x1.npy", tmp_path / "-x.npy")
    assert "dog" in execute(capsys, "predict", "elsewhere", "x=-x.npy", "y=~/y1.npy")
    # The kept statistics are those of the run: others are refused.
    np_file = tmp_path / "elsewhere" / "data.safetensors"
    np_file.write_bytes(np_file.read_bytes()[:-1] + b"x")
    assert "data.safetensors does not fit data.json" in execute(
        capsys, "predict", "elsewhere", "x=new/x1.npy", "y=new/y1.npy", status=2
    )


def test_a_finished_run_holds_no_checkpoint_and_json_that_other_programs_read(home):
    names = {path.name for path in (home / "runs" / "m").iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.yaml", "data.json", "data.safetensors", "metrics.csv", "result.json", "best.safetensors",
        "last.safetensors", "predictions.safetensors", "tensorboard",
    }  # fmt: skip
    for path in (home / "runs" / "m").glob("*.json"):
        parse_json(path.read_text())
    assert parse_json(json_text({"a": [math.nan, math.inf, 1.5]})) == {"a": [None, None, 1.5]}
    with pytest.raises(ValueError, match="NaN is not JSON"):
        parse_json('{"a": NaN}')


def test_the_page_on_services_runs(home, monkeypatch):
    monkeypatch.chdir(home)
    page = (Path(__file__).parents[2] / "docs" / "use-a-run.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 1
    names = {
        "runs/pets": "runs/m", '"voice"': '"x"', '"photo"': '"y"', "new.wav": "files/x1.npy", "new.png": "files/y1.npy",
    }  # fmt: skip
    space = {}
    program = "\n".join(blocks)
    for old, new in names.items():
        program = program.replace(old, new)
    exec(program, space)  # noqa: S102  (the project's own text)
    fused = space["probabilities"]["fused"]
    assert max(fused, key=fused.get) == "dog"
    assert set(space["probabilities"]) == {"fused", "x", "y"}


def test_a_run_is_exported_without_its_data(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "prepared").rename(copy / "scratch")
    execute(capsys, "export", "runs/m", "--formats", "pt2", "--masks", "--out", "out")
    card = " ".join(Path("out/README.md").read_text().split())
    test = json.loads(Path("runs/m/result.json").read_text())["test"]
    assert f"| multimodal | {100 * test['accuracy']:.1f} % [" in card
    assert f"| y | {100 * test['unimodal_accuracy']['y']:.1f} % [" in card
    assert "What a missing modality costs was not measured, since the data was not at hand" in card
    assert "| y_present | mask of the samples that have it | (B) |" in card
    assert "no prepared 'manifest' in nowhere" in execute(
        capsys, "export", "runs/m", "--formats", "pt2", "--data.root", "nowhere", status=2
    )
    execute(capsys, "export", "runs/m", "--formats", "pt2", "--data.root", "scratch")
    assert "A modality that all samples lack costs:" in Path("runs/m/export/README.md").read_text()


def test_the_files_of_the_readme_are_a_seven():
    examples = Path(__file__).parents[2] / "examples"
    (sample,) = list_new_samples(
        [str(examples / "seven.wav"), str(examples / "seven.png")], bmlr.data.get("digits")().modalities
    )
    inputs = bmlr.data.create("digits").load_files(sample.files)
    assert {name: x.shape[1:] for name, x in inputs.items()} == {"audio": (1, 24, 25), "image": (1, 16, 16)}


HOLD = """
import sys, time
from bmlr.runs import DirectoryLock
with DirectoryLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_second_process_in_a_run_is_refused_with_the_first_named(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "runs" / "m" / "result.json").unlink()
    train = ["train", "--data", "manifest", "--data.root", "prepared", *OPTIONS, "--run", "runs/m", "--resume"]
    with subprocess.Popen([sys.executable, "-c", HOLD, "runs/m"], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout.readline().strip() == "held"
        message = execute(capsys, *train, status=2)
        assert f"runs/m is in use by process {process.pid} on {socket.gethostname()}, since " in message
        process.kill()
    with DirectoryLock(copy / "runs" / "m"):  # of this process: a grid's
        execute(capsys, *train)
