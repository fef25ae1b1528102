"""Figures of merit beside accuracy, through the commands."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as reference

from bmlr import cli
from bmlr.batch import Batch
from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, fill_defaults
from bmlr.methods import Joint, Prediction
from bmlr.runs import read_predictions, read_result
from bmlr.runs.storage import write_json
from bmlr.tasks import Multiclass
from bmlr.training import train
from bmlr.training._scores import ScoreMetric
from task_toys import ToyLabels, ToyNumbers
from toy import Toy

CPU = ["--trainer.accelerator", "cpu", "--trainer.progress", "false", "--trainer.logger", "none"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return cli.main([str(word) for word in words])


def test_numbers_are_trained_compared_reported_and_tuned_by_their_error(folder, capsys):
    for method in ("Joint", "DGL"):
        for seed in (0, 1):
            run("train", "task_toys.ToyNumbers", "--method", method, "--seed", seed, *CPU)
    printed = capsys.readouterr().out
    assert "multimodal MAE" in printed
    assert "MAE of a constant prediction 0." in printed
    assert "accuracy" not in printed
    directory = next((folder / "runs").glob("*Joint-seed0*"))
    result, predictions = read_result(directory), read_predictions(directory)
    targets = ToyNumbers().split("test").targets.numpy()
    assert result["metric"] == result["monitor"] == "mae"
    assert result["constant_score"] == pytest.approx(np.abs(targets - np.median(targets)).mean(), rel=0.05)
    for name in ("fused", "audio", "text"):
        test = {key: result["test"][key] if name == "fused" else result["test"][f"unimodal_{key}"][name]
                for key in ("mae", "rmse", "pearson")}  # fmt: skip
        errors = predictions[name] - targets
        assert test["mae"] == pytest.approx(np.abs(errors).mean(), abs=1e-5)
        assert test["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-5)
        assert test["pearson"] == pytest.approx(np.corrcoef(predictions[name], targets)[0, 1], abs=1e-4)
    # The epoch of the smallest error is selected.
    history = pd.read_csv(directory / "metrics.csv")
    assert result["best_epoch"] == history["val_mae"].idxmin()

    run("compare", "--runs", "runs", "--baseline", "Joint", "--metrics", "rmse", "--out", "out")
    printed = capsys.readouterr().out
    assert "| method | multimodal MAE | audio MAE | text MAE | multimodal RMSE | ratio audio/text |" in printed
    assert "paired bootstrap over seeds and samples" in printed
    assert "MAE of a constant prediction 0." in printed
    table = pd.read_csv(folder / "out" / "table.csv").set_index("method")
    assert {"mae_mean", "mae_audio_std", "rmse_mean", "pearson_text_mean"} <= set(table)
    bold = min(table.index, key=lambda label: table.loc[label, "mae_mean"])
    assert f"| {bold} | **" in printed  # the smallest error is the best
    assert (folder / "out" / "mae.png").is_file()

    run("report", "runs", "--out", "page.html")
    page = (folder / "page.html").read_text()
    assert "MAE on the test split, multimodal, smaller is better" in page
    assert "Accuracy by class" not in page
    assert "Pearson&#39;s correlation" in page
    capsys.readouterr()

    run("evaluate", directory, "--split", "val")
    printed = capsys.readouterr().out
    assert f"multimodal MAE {history['val_mae'].min():.3f}" in printed
    assert "RMSE" in printed
    assert "accuracy" not in printed


def test_labels_have_average_precision_and_f1(folder, capsys):
    run("train", "task_toys.ToyLabels", "--method", "Joint", "--run", "a", *CPU, "--trainer.monitor", "macro_f1")
    printed = capsys.readouterr().out
    assert "multimodal mAP" in printed
    assert "mAP of a constant prediction" in printed
    result, predictions = read_result(folder / "a"), read_predictions(folder / "a")
    targets = ToyLabels().split("test").targets.numpy()
    expected = reference.average_precision_score(targets, predictions["fused"], average="macro")
    assert result["test"]["mean_average_precision"] == pytest.approx(expected, abs=1e-5)
    assert result["test"]["auroc"] == pytest.approx(reference.roc_auc_score(targets, predictions["fused"]), abs=1e-5)
    assert result["constant_score"] == pytest.approx(targets.mean(0).mean())
    history = pd.read_csv(folder / "a" / "metrics.csv")
    assert result["monitor"] == "macro_f1"
    assert result["best_epoch"] == history["val_macro_f1"].idxmax()
    run("report", "a", "--out", "page.html")
    assert "mAP on the test split, multimodal;" in (folder / "page.html").read_text()


def test_classes_have_more_metrics_and_the_same_selection(folder, capsys):
    run("train", "toy.Toy", "--method", "Joint", "--run", "a", *CPU)
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("macro-F1", "balanced accuracy", "NLL", "ECE"))
    result, predictions = read_result(folder / "a"), read_predictions(folder / "a")
    test, targets = result["test"], predictions["targets"]
    assert test["accuracy"] == pytest.approx((predictions["fused"] == targets).mean())
    for name in ("audio", "image"):
        f1 = reference.f1_score(targets, predictions[name], average="macro")
        assert test["unimodal_macro_f1"][name] == pytest.approx(f1, abs=1e-5)
        balanced = reference.balanced_accuracy_score(targets, predictions[name])
        assert test["unimodal_balanced_accuracy"][name] == pytest.approx(balanced, abs=1e-5)
    assert test["nll"] > 0
    assert 0 <= test["ece"] <= 1
    history = pd.read_csv(folder / "a" / "metrics.csv")
    assert result["best_epoch"] == history["val_accuracy"].idxmax()
    assert {"val_nll_audio", "val_ece", "val_macro_f1_image"} <= set(history)
    run("train", "toy.Toy", "--method", "Joint", "--run", "b", *CPU, "--trainer.monitor", "nll")
    assert read_result(folder / "b")["best_epoch"] == history["val_nll"].idxmin()
    assert run("train", "toy.Toy", "--method", "Joint", "--run", "c", *CPU, "--trainer.monitor", "macrof1")
    error = capsys.readouterr().err
    assert "Parameter `monitor` should be a metric of the task: accuracy, balanced_accuracy, ece" in error
    assert "Did you mean 'macro_f1'?" in error
    assert not (folder / "c").exists()


def test_a_score_counts_the_samples_since_the_last_reset():
    targets = torch.tensor([0, 1, 2, 0])
    wrong, right = torch.eye(3)[(targets + 1) % 3], torch.eye(3)[targets]
    metric = ScoreMetric(("audio",), Multiclass(3))
    scores = []
    for logits in (wrong, wrong, right):  # an epoch each
        metric.reset()
        metric.update(Prediction(logits, {"audio": logits}), Batch({"audio": logits}, targets))
        scores.append(metric.compute())
    assert [score.metrics["accuracy"] for score in scores] == [0, 0, 1]
    assert [score.metrics["macro_f1"] for score in scores] == [0, 0, 1]
    assert scores[-1].samples == 4


def test_the_default_metric_leaves_digests_as_they_were():
    def digest(monitor):
        options = fill_defaults(Toy(), ModelOptions(), OptimizerOptions(), TrainerOptions(monitor=monitor))
        config = RunConfig(Toy(), Joint(), *options, 0)
        return config.digest, config.settings["trainer"]

    assert "monitor" not in digest(None)[1]
    assert digest(None)[0] != digest("nll")[0]


def test_results_from_before_are_read(tmp_path):
    result = train(
        Toy(), Joint(), trainer=TrainerOptions(epochs=1, accelerator="cpu", progress=False), run=tmp_path / "a"
    )
    content = json.loads((tmp_path / "a" / "result.json").read_text())
    old = {
        key: value for key, value in content.items() if key not in {"metric", "monitor", "constant_score", "checksum"}
    }
    old["majority_rate"] = content["constant_score"]
    for name in ("test", "validation"):
        old[name] = {key: content[name][key] for key in ("accuracy", "unimodal_accuracy", "ratio", "samples")}
    write_json(tmp_path / "a" / "result.json", old)
    read = read_result(result.directory)
    assert (read["metric"], read["monitor"]) == ("accuracy", "accuracy")
    assert read["constant_score"] == content["constant_score"]
    assert read["test"]["accuracy"] == content["test"]["accuracy"]


def test_a_split_of_one_sample_is_said_in_the_singular(folder, capsys):
    sizes = ["--data.samples", "{train: 32, val: 8, test: 1}", "--model.width", "2", "--trainer.epochs", "1"]
    assert run("train", "synthetic", *sizes, "--method", "Joint", "--run", "a", *CPU) == 0
    assert "test split: 1 sample, multimodal accuracy" in capsys.readouterr().out


def test_sentiment_has_its_customary_metrics(folder, capsys):
    run("train", "task_toys.ToySentiment", "--method", "Joint", "--run", "a", *CPU)
    printed = capsys.readouterr().out
    for title in ("Acc-2 (has zero)", "Acc-2 (non-zero)", "F1 (has zero)", "F1 (non-zero)", "Acc-7", "MAE"):
        assert title in printed
    targets = torch.as_tensor(read_predictions(folder / "a")["targets"])
    predicted = torch.as_tensor(read_predictions(folder / "a")["fused"])
    test = read_result(folder / "a")["test"]
    assert test["acc2_nonnegative"] == pytest.approx(float(((predicted >= 0) == (targets >= 0)).float().mean()))
    seven = predicted.clamp(-3, 3).round() == targets.clamp(-3, 3).round()
    assert test["acc7"] == pytest.approx(float(seven.float().mean()))
