import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from axes import legend_texts, record_figures, title_of
from bmlr._files import parse_json
from bmlr.cli import main
from bmlr.config import TrainerOptions, read_config
from bmlr.diagnosis import diagnose_run
from bmlr.methods import UniformBaseline
from bmlr.monitor import GradientMonitor
from bmlr.training import evaluate_run, train
from toy import Toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = TrainerOptions(epochs=2, accelerator="cpu", devices=1, progress=False)
    return train(Toy(samples=120), UniformBaseline(), trainer=options, runs=tmp_path_factory.mktemp("runs")).directory


@pytest.fixture
def splits(monkeypatch):
    """The splits that are read."""
    asked, original = [], Toy.split

    def split(self, name):
        asked.append(name)
        return original(self, name)

    monkeypatch.setattr(Toy, "split", split)
    return asked


def test_a_run_is_read_by_its_methods_predictions_on_validation_only(run, splits):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    diagnosis = diagnose_run(run)
    assert torch.equal(torch.rand(3), expected)
    assert set(splits) == {"val"}
    score = evaluate_run(run, split="val")
    assert diagnosis.accuracy.value == pytest.approx(score.fused)
    assert {u: m.alone.value for u, m in diagnosis.modalities.items()} == pytest.approx(score.unimodal)
    assert "UniformBaseline on toy, validation split, best weights" in diagnosis.caption
    assert "UniformBaseline" not in diagnosis.verdict.methods
    last = diagnose_run(run, split="test", weights="last")
    assert last.accuracy.value == pytest.approx(evaluate_run(run, split="test", weights="last").fused)


def test_the_command_prints_and_writes(run, splits, capsys, tmp_path, monkeypatch):
    saved = record_figures(monkeypatch)
    assert main(["diagnose", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy alone" in printed
    assert "verdict" in printed
    content = parse_json((run / "diagnosis" / "diagnosis.json").read_text())
    assert f"multimodal accuracy {100 * content['accuracy']['value']:.1f} % [" in " ".join(printed.split())
    assert " ".join(content["verdict"]["paragraph"].split())[:30] in " ".join(printed.split())
    assert "test" not in splits
    titles = [title_of(figure) for figure in saved]
    epoch = 1 + json.loads((run / "result.json").read_text())["best_epoch"]
    subject = f"UniformBaseline on toy, validation split, best weights (epoch {epoch} of 2), 120 samples"
    assert titles == [f"{kind}: {subject}" for kind in ("Accuracy by modality", "Contribution of each modality",
                                                        "Confidence gap")]  # fmt: skip
    assert all(legend_texts(figure)[-1] == "95 % interval" for figure in saved)
    assert "mean signed gap (above 0: the first is more confident)" in legend_texts(saved[2])
    assert {path.name for path in (run / "diagnosis").iterdir()} == {
        "diagnosis.json", "diagnosis.md", "accuracies.png", "shapley.png", "confidence.png",
    }  # fmt: skip
    assert main(["diagnose", str(run), "--split", "test", "--out", str(tmp_path / "d")]) == 0
    assert "test split" in json.loads((tmp_path / "d" / "diagnosis.json").read_text())["subject"]


def test_the_command_with_probes_and_recorded_gradients(run, splits, capsys, tmp_path):
    monitor = GradientMonitor(run)
    monitor._pending = [{"step": 0, "epoch": 0, "norm_audio": 2.0, "norm_image": 1.0}]
    monitor.write()
    try:
        assert main(["diagnose", str(run), "--probe", "--out", str(tmp_path)]) == 0
    finally:
        (run / "gradients.csv").unlink()
    captured = capsys.readouterr()
    assert len(list(run.parent.glob("toy-Unimodal-seed0-*/result.json"))) == 2
    assert "training image alone for 2 epochs" in captured.err
    assert "linear probe, joint encoder" in captured.out
    assert "gradient norm in training" in captured.out
    assert (tmp_path / "probes.png").is_file()
    assert (tmp_path / "gradients.png").is_file()
    alone = next(run.parent.glob("toy-Unimodal-seed0-*"))
    assert main(["diagnose", str(alone)]) == 2
    assert "alone, so that there is no balance to diagnose. Diagnose a run of several" in capsys.readouterr().err
    first = json.loads((tmp_path / "diagnosis.json").read_text())
    assert first["modalities"]["image"]["probe_alone"]["value"] is not None
    splits.clear()
    assert main(["diagnose", str(run), "--probe", "--removal", "mean", "--out", str(tmp_path)]) == 0
    assert sorted(splits) == ["train", "val"]  # the runs trained alone are reused: only they read the test split
    again = json.loads((tmp_path / "diagnosis.json").read_text())
    assert "mean input" in again["removal"]
    assert again["modalities"]["image"]["probe_alone"] == first["modalities"]["image"]["probe_alone"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no run in nowhere"),
        (["RUN", "--split", "train", "--probe"], "Option --probe fits to the training split"),
        (["RUN", "--split", "validation"], "split"),
        (["RUN", "--weights", "first"], "weights"),
    ],
)
def test_bad_input_fails_with_one_sentence(run, capsys, arguments, message):
    assert main(["diagnose", *[str(run) if text == "RUN" else text for text in arguments]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_damaged_run_is_named(run, capsys, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "best.safetensors is missing" in capsys.readouterr().err


def test_double_precision(tmp_path):
    options = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False, precision="64-true")
    directory = train(Toy(), UniformBaseline(), trainer=options, runs=tmp_path).directory
    diagnosis = diagnose_run(directory, probe=True)
    assert diagnosis.modalities["audio"].probe_alone is not None
    assert dataclasses.asdict(diagnosis.thresholds)["fraction"] == 0.9


def test_importing_it_needs_torch_and_numpy_only():
    program = """
import sys
for name in ("lightning", "matplotlib", "pandas", "rich", "sklearn", "scipy", "torchmetrics", "safetensors"):
    sys.modules[name] = None
import torch
from bmlr.diagnosis import diagnose
data = [({"a": torch.randn(150, 2), "v": torch.randn(150, 2)}, torch.arange(150) % 2)]
print(diagnose(lambda inputs: inputs["a"] + inputs["v"], data, module=[]).to_markdown())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert "accuracy alone" in done.stdout


def test_the_example_names_the_modality_that_is_behind(tmp_path):
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(ROOT / "examples" / "diagnose_own_model.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # more threads would only wait for each other
    )
    assert done.returncode == 0, done.stderr
    assert "relies little on video" in done.stdout
    assert "video is undertrained" in done.stdout
    assert list(tmp_path.rglob("accuracies.png"))


def test_training_records_gradients_on_request_and_is_not_changed_by_it(tmp_path):
    options = TrainerOptions(epochs=2, accelerator="cpu", devices=1, progress=False)
    watched = dataclasses.replace(options, gradients=True)
    plain = train(Toy(), UniformBaseline(), trainer=options, run=tmp_path / "plain")
    recorded = train(Toy(), UniformBaseline(), trainer=watched, run=tmp_path / "watched")
    assert not (plain.directory / "gradients.csv").exists()
    assert (recorded.directory / "gradients.csv").is_file()
    assert recorded.content["test"] == plain.content["test"]
    assert recorded.content["digest"] == plain.content["digest"]
    assert "gradient" in diagnose_run(recorded.directory).to_markdown()


@pytest.mark.slow
def test_a_run_of_two_processes_is_probed_by_two_and_printed_once(tmp_path):
    def bmlr(*arguments):
        return subprocess.run(  # noqa: S603
            [sys.executable, "-m", "bmlr", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout

    options = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.epochs", "1"]
    sizes = ["--data.samples", "{train: 200, val: 150, test: 50}"]
    bmlr("train", "--data", "synthetic", *sizes, "--method", "Joint", *options, "--run", "joint")
    printed = bmlr("diagnose", "joint", "--probe", "true")
    assert printed.count("signed confidence gap") == 1
    content = json.loads((tmp_path / "joint" / "diagnosis" / "diagnosis.json").read_text())
    for directory in tmp_path.glob("synthetic-Unimodal-*"):
        modality = read_config(directory / "config.yaml").method.modality
        expected = evaluate_run(directory, split="val").fused
        assert content["modalities"][modality]["trained_alone"]["value"] == pytest.approx(expected)
