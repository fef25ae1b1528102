"""A run on numbers is evaluated, diagnosed, exported and served by what a person types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bmlr
from bmlr.cli import main

TRAIN = [
    "--method", "Joint", "--model.width", "2", "--trainer.epochs", "2", "--optimizer.lr", "0.01", "--trainer.progress",
    "false", "--trainer.accelerator", "cpu",
]  # fmt: skip


def test_a_regressor_of_three_modalities_goes_all_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["id,target,x:vector,words:text,steps:sequence"]
    for number in range(120):
        value = rng.normal()
        np.save(f"x{number}.npy", (rng.normal(size=3) + value).astype("float32"))
        np.save(f"steps{number}.npy", rng.normal(size=(5, 4)).astype("float32"))
        Path(f"w{number}.txt").write_text("a good one" if number % 2 else "a bad one")
        rows.append(f"s{number},{value + number % 2:.3f},x{number}.npy,w{number}.txt,steps{number}.npy")
    Path("table.csv").write_text("\n".join(rows) + "\n")
    assert main(["prepare", "manifest", "table.csv", "prepared", "--workers", "0"]) == 0
    assert main(["train", "manifest", "--data.root", "prepared", *TRAIN, "--run", "run"]) == 0
    test = json.loads(Path("run/result.json").read_text())["test"]

    assert main(["evaluate", "run", "--missing", "words=1", "--noise", "x"]) == 0
    scores = json.loads(Path("run/robustness/robustness.json").read_text())["scores"]
    assert scores[0]["scores"]["fused"]["value"] == pytest.approx(test["mae"], rel=1e-5)
    assert scores[1]["missing"] == {"words": 1.0}
    capsys.readouterr()
    assert main(["evaluate", "run", "--noise", "words"]) == 2
    assert "Words take no noise" in capsys.readouterr().err

    assert main(["diagnose", "run"]) == 0
    diagnosis = json.loads(Path("run/diagnosis/diagnosis.json").read_text())
    assert set(diagnosis["effects"]) == {"x", "words", "steps"}
    assert list(diagnosis["effects"]["words"]) == ["shuffled", "noise"]
    capsys.readouterr()
    assert main(["diagnose", "run", "--probe", "true"]) == 2
    assert "predicts no classes: leave out --probe and --removal" in capsys.readouterr().err

    assert main(["export", "run", "--formats", "pt2"]) == 0
    assert f"| multimodal | {test['mae']:.3f} " in Path("run/export/README.md").read_text()
    run = bmlr.load("run")
    files = {"x": "x3.npy", "words": "w3.txt", "steps": "steps3.npy"}
    inputs, _ = run.read(files)
    program = torch.export.load("run/export/model.pt2").module()
    served = run.predict(files)["fused"]["target"]
    assert program(inputs)["logits"].item() == pytest.approx(served, abs=1e-5)
