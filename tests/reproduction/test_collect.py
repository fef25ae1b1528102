import json

import numpy as np
import pytest
import torch

import bmlr.methods
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.data import ArraySplit
from bmlr.functional import reshape_labels
from bmlr.reproduction import collect_run
from bmlr.reproduction._collect import confused_classes, most_reshaped_classes
from bmlr.runs import read_predictions
from bmlr.training import load
from inline import CPU, SMALL, InlineEngine, quiet
from toy import Toy
from zoo import make_batch, make_model


def one_run(folder, method="BMLR:alpha=0.5,beta=0", data=None):
    jobs = make_jobs(data or Toy(), [method], [0], trainer=CPU, model=SMALL)
    return run_grid(jobs, folder, InlineEngine(), say=quiet)[0].directory


def test_what_is_collected_is_what_the_run_predicts(tmp_path):
    directory = one_run(tmp_path)
    collected = collect_run(directory)
    predictions = read_predictions(directory)
    assert collected.classes == Toy.classes
    assert collected.targets.tolist() == predictions["targets"].tolist()
    assert collected.logits.argmax(1).tolist() == predictions["fused"].tolist()
    for name, scores in collected.scores.items():
        assert scores.argmax(1).tolist() == predictions[name].tolist()
        assert collected.features[name].shape[0] == 40
    assert collected.dropped == 0


def test_labels_are_those_of_the_equations(tmp_path):
    directory = one_run(tmp_path)
    collected = collect_run(directory, "train")
    model = load(directory).model
    batch = Toy().split("train").batch(range(40))
    with torch.no_grad():
        expected = reshape_labels(model(batch.inputs).unimodal_logits, batch.targets, alpha=0.5, beta=0.0).labels
    for name, labels in collected.labels.items():
        assert labels == pytest.approx(expected[name].numpy(), abs=1e-5)
        assert labels.sum(1) == pytest.approx(np.ones(40), abs=1e-5)
    assert len(most_reshaped_classes(collected)) == 3


@pytest.mark.parametrize("name", bmlr.methods.available())
def test_labels_of_every_method_are_labels_or_none(name):
    batch = make_batch(2, 5)
    labels = bmlr.methods.create(name).labels(make_model(2)(batch.inputs), batch.targets)
    softens = name in {"BMLR", "OnlyReshape", "VanillaReshape", "UniDistill", "UniReshaping"}
    assert (labels is not None) == softens
    for values in (labels or {}).values():
        assert values.sum(1) == pytest.approx(torch.ones(5), abs=1e-5)
        assert float(values.min()) >= 0


def test_some_samples_are_drawn_by_lot(tmp_path):
    directory = one_run(tmp_path)
    few = collect_run(directory, max_samples=7, seed=1)
    whole = collect_run(directory)
    assert len(few.indices) == 7
    assert few.features["audio"] == pytest.approx(whole.features["audio"][few.indices], abs=1e-5)
    assert few.indices.tolist() == collect_run(directory, max_samples=7, seed=1).indices.tolist()
    assert few.indices.tolist() != collect_run(directory, max_samples=7, seed=2).indices.tolist()


class Gappy(Toy):
    """The toy set, of which every fourth sample has no image."""

    def split(self, name):
        split = super().split(name)
        present = {"image": np.arange(len(split)) % 4 > 0}
        return ArraySplit(split.inputs, split.targets.numpy(), present=present)


def test_samples_without_a_modality_are_left_out_and_counted(tmp_path):
    directory = one_run(tmp_path, data=Gappy())
    collected = collect_run(directory)
    assert collected.dropped == 10
    assert collected.indices.tolist() == [index for index in range(40) if index % 4]
    predictions = read_predictions(directory)
    assert (predictions["image"][::4] == -1).all()
    assert (predictions["image"][1::4] >= 0).all()
    accuracy = json.loads((directory / "result.json").read_text())["test"]["unimodal_accuracy"]["image"]
    present = predictions["image"] >= 0
    assert (predictions["image"] == predictions["targets"])[present].mean() == pytest.approx(accuracy)


def test_a_method_of_one_hot_labels_has_no_most_reshaped_classes(tmp_path):
    collected = collect_run(one_run(tmp_path, "Joint"))
    assert collected.labels is None
    with pytest.raises(ValueError, match="trains on one-hot labels"):
        most_reshaped_classes(collected)
    pair = confused_classes(collected)
    assert len(set(pair)) == 2


def test_confused_classes_are_those_taken_for_each_other(tmp_path):
    import dataclasses

    collected = collect_run(one_run(tmp_path, "Joint"))
    targets = np.array([0, 0, 1, 1, 2, 2])
    scores = {"audio": np.eye(3)[[0, 0, 2, 2, 1, 2]], "image": np.eye(3)[targets]}
    changed = dataclasses.replace(collected, targets=targets, scores=scores)
    assert confused_classes(changed) == [1, 2]
