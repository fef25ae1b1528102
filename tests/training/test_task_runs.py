"""Runs on labels and numbers: trained, chosen by the task's metric, resumed, evaluated and printed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from bmlr._files import json_text
from bmlr.cli import main
from bmlr.config import TrainerOptions
from bmlr.data import ArraySplit
from bmlr.methods import AGM, BMLR, OGMGE, Joint
from bmlr.tasks import MultiLabel, Sentiment
from bmlr.training import evaluate_run, train
from toy import Toy

OPTIONS = TrainerOptions(epochs=3, batch_size=8, accelerator="cpu", devices=1, progress=False)


class Stop(Exception):
    pass


class Labels(Toy):
    """Three labels of a vector and an image."""

    name = "toy-labels"
    task = MultiLabel(3)

    def split(self, name):
        inputs = super().split(name).inputs
        targets = np.stack(
            [inputs["audio"][:, 0] > 2, inputs["audio"][:, 1] > 1, inputs["image"].mean((1, 2, 3)) > 0], 1
        )
        present = {"image": np.arange(self.samples) % 4 > 0}
        return ArraySplit(inputs, targets.astype(np.int64), present=present)


class Numbers(Toy):
    """A number from a vector and an image."""

    name = "toy-numbers"
    task = Sentiment()

    def split(self, name):
        inputs = super().split(name).inputs
        return ArraySplit(inputs, (inputs["audio"][:, 0] - 2 + inputs["image"].mean((1, 2, 3))) / 2)


CASES = {"labels": (Labels, BMLR), "numbers": (Numbers, OGMGE)}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_chosen_by_its_metric_and_tells_all(tmp_path, case):
    data, method = CASES[case]
    result = train(data(), method(), trainer=OPTIONS, run=tmp_path / "run")
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    primary = data.task.primary
    chosen = metrics[f"val_{primary}"].max() if data.task.larger_is_better else metrics[f"val_{primary}"].min()
    assert content["validation"][primary] == pytest.approx(chosen)
    assert metrics[f"val_{primary}"][content["best_epoch"]] == pytest.approx(chosen)
    assert set(content["test"][f"unimodal_{primary}"]) == {"audio", "image"}
    score = evaluate_run(result.directory)
    assert score.metrics[primary] == pytest.approx(content["test"][primary])
    assert content["metric"] == content["monitor"] == primary
    assert content["constant_score"] > 0
    assert not [name for name in metrics if "accuracy" in name]


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, case):
    data, make = CASES[case]
    whole = train(data(), make(), trainer=OPTIONS, run=tmp_path / "whole")
    method, seen = make(), []
    compute_losses = method.compute_losses

    def stop(model, batch):
        seen.append(batch)
        if len(seen) > 8:
            raise Stop
        return compute_losses(model, batch)

    method.compute_losses = stop
    with pytest.raises(Stop):
        train(data(), method, trainer=OPTIONS, run=tmp_path / "cut")
    resumed = train(data(), make(), trainer=OPTIONS, run=tmp_path / "cut", resume=True)
    for name in ("best", "last"):
        first, second = (load_file(result.directory / f"{name}.safetensors") for result in (whole, resumed))
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (json_text(result.content["test"]) for result in (whole, resumed))
    assert first == second


def test_a_method_that_is_not_defined_for_the_task_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="BMLR is defined for multiclass and multilabel tasks only"):
        train(Numbers(), BMLR(), trainer=OPTIONS, run=tmp_path / "run")


def test_numbers_are_learnt(tmp_path):
    options = TrainerOptions(epochs=6, batch_size=8, accelerator="cpu", devices=1, progress=False)
    content = train(Numbers(80), AGM(), trainer=options, run=tmp_path / "run").content
    assert content["test"]["pearson"] > 0.7


def test_the_command_prints_the_metrics_of_the_task(tmp_path, capsys):
    options = TrainerOptions(epochs=1, batch_size=8, accelerator="cpu", devices=1)
    train(Numbers(), Joint(), trainer=options, run=tmp_path / "run")
    assert "validation MAE 0." in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "Acc-2 (has zero)" in printed
    assert "Pearson's correlation" in printed
    assert "nan" not in printed.casefold()
