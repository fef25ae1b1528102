"""What ``bmlr train`` says before and while it trains, and the threads it takes."""

import json
import re

import pytest
import torch

from bmlr import _processors
from bmlr.cli import main
from bmlr.training._advice import advise_on_labels


def train(run, *options):
    arguments = [
        "train",
        "--data",
        "toy.Toy",
        "--method",
        "Joint",
        "--trainer.epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main([*arguments, "--run", str(run), *options]) == 0


def test_a_pipe_gets_what_will_be_done_and_a_line_per_epoch(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    train(tmp_path / "r")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Joint on toy (40 train, 40 val, 40 test samples): ")
    assert "parameters, 2 epochs of 3 steps, 1 thread on cpu, " in lines[0]
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert any(line.startswith("6 steps in all, about ") for line in lines)
    assert not caplog.text


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_gets_a_bar_with_epochs_from_one(tmp_path, capsys, monkeypatch, variables):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "160", **variables}.items():
        monkeypatch.setenv(name, value)
    train(tmp_path / "r")
    output = capsys.readouterr().out
    assert "v_num" not in output
    assert "poch 0" not in output
    assert "epoch 2/2" in output
    if "TERM" in variables:
        assert "\x1b[" not in output.partition("┏")[0]
        assert "epoch 1/2: validation accuracy" in output
    else:
        assert re.search(r"validation accuracy: \d+\.\d %", output)
        assert "% %" not in output
        assert ("\x1b[38" in output) == (not variables)


def test_configurations_that_cannot_work_are_remarked_upon(tmp_path, caplog):
    train(tmp_path / "r", "--data.samples", "12", "--optimizer.lr", "5e-5")
    batch, rate, *splits = (record.getMessage() for record in caplog.records if record.name == "bmlr.training")
    assert batch == (
        "A batch of 16 is more than the 12 training samples, so that an epoch is one step: a smaller "
        "--trainer.batch_size makes more of them."
    )
    assert rate == (
        "2 steps at a learning rate of 5e-05 can move no weight by more than 0.0001, too little to learn much: raise "
        "--optimizer.lr or --trainer.epochs, or lower --trainer.batch_size."
    )
    assert splits == [f"The {split} split has 12 samples: each is 8.3 % of it." for split in ("validation", "test")]


def test_labels_that_are_never_reshaped_are_remarked_upon_once(tmp_path, caplog):
    options = ["--trainer.epochs", "7", "--trainer.progress", "false"]
    train(tmp_path / "r", "--method", "BMLR", "--method.beta", "1", *options)
    remarks = [record.getMessage() for record in caplog.records if "reshaped" in record.getMessage()]
    assert len(remarks) == 1
    assert remarks[0].startswith("Less than 2 % of the labels have been reshaped for 5 epochs")
    assert remarks[0].endswith("so that the method trains on one-hot labels: lower --method.beta.")
    caplog.clear()
    train(tmp_path / "s", "--method", "BMLR", "--method.beta", "0.5", *options)
    assert "reshaped" not in caplog.text


def test_labels_that_are_always_reshaped_are_remarked_upon_once(tmp_path, caplog):
    data = ["--data.samples", "{train: 512, val: 64, test: 64}", "--data.accuracy", "{audio: 0.95, video: 0.12}"]
    options = ["--trainer.epochs", "12", "--trainer.progress", "false", "--trainer.accelerator", "cpu"]
    method = ["--method", "BMLR", "--method.beta", "0"]
    assert main(["train", "synthetic", *data, *method, *options, "--run", str(tmp_path / "r")]) == 0
    (remark,) = [record.getMessage() for record in caplog.records if "reshaped" in record.getMessage()]
    assert remark == (
        "More than 95 % of the labels of audio have been reshaped for 5 epochs, so that it hardly learns from its own "
        "labels: raise --method.beta."
    )


def test_few_epochs_and_other_methods_get_no_remark_on_labels():
    row = {"train_loss": 1.0, "train_reshaped_audio": 0.97, "train_reshaped_image": 0.01}
    assert advise_on_labels([row] * 4) is None
    assert "of the labels of audio have been reshaped" in advise_on_labels([row] * 5)
    assert advise_on_labels([{"train_loss": 1.0}] * 9) is None
    assert advise_on_labels([]) is None


def test_threads_are_chosen_recorded_and_name_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("bmlr.training._threads.count_processors", lambda: 2)
    before = torch.get_num_threads()
    results = {}

    def recorded(name, *options):
        train(tmp_path / name, "--data.samples", "16", "--trainer.epochs", "1", *options)
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
        assert torch.get_num_threads() == before
        return results[name]["versions"]["threads"]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert recorded("small") == "1"
    assert recorded("two", "--trainer.threads", "2", "--trainer.progress", "false") == "2"
    monkeypatch.setattr("bmlr.training._threads._SMALL", 0)
    assert recorded("large") == "2"
    assert recorded("workers", "--trainer.num_workers", "1") == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert recorded("variable") == str(before)
    assert len({result["digest"] for result in results.values()}) == 1


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({"cpu.max": "150000 100000"}, 2), ({"cpu.max": "20000 100000"}, 1), ({"cpu.max": "max 100000"}, 8), ({}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, files, number):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_processors, "_CGROUPS", tmp_path)
    monkeypatch.setattr(_processors.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert _processors.count_processors() == number
