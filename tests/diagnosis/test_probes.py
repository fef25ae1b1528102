import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import bmlr
from bmlr.config import ModelOptions, TrainerOptions, read_config
from bmlr.data import create
from bmlr.diagnosis import diagnose, diagnose_run
from bmlr.diagnosis.probes import TrainedAlone, compare_probes, extract_features, fit_linear_probe
from bmlr.methods import Joint
from bmlr.runs import find_runs
from bmlr.training import evaluate_run, train
from bmlr.training._recorder import Recorder
from toy import Toy

CPU = TrainerOptions(accelerator="cpu", devices=1, progress=False)


def blobs(count=120, classes=3, seed=0):
    """Class centres seen in audio in plain sight, and in video among noise; as one batch."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    centres = 3 * np.eye(classes, 5)
    inputs = {
        "audio": centres[targets] + 0.5 * rng.standard_normal((count, 5)),
        "video": centres[targets] + rng.standard_normal((count, 5)),
    }
    return bmlr.Batch({u: torch.tensor(x, dtype=torch.float32) for u, x in inputs.items()}, torch.tensor(targets))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_the_probe_minimises_its_objective(classes, penalty):
    """The gradient of the documented objective, by automatic differentiation, is zero at the probe."""
    batch = blobs(classes=classes)
    probe = fit_linear_probe(batch.inputs["video"], batch.targets, classes, penalty=penalty)
    standardised = (batch.inputs["video"].double() - probe.mean) / probe.scale
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    objective = nn.functional.cross_entropy(standardised @ weight.T + bias, batch.targets)
    objective = objective + penalty / 2 * weight.square().sum()
    objective.backward()
    assert float(weight.grad.abs().max()) < 1e-5
    assert float(bias.grad.abs().max()) < 1e-5
    assert float(probe.weight.abs().max()) > 0.1


def test_classes_without_samples_are_never_predicted():
    batch = blobs(classes=3)
    probe = fit_linear_probe(batch.inputs["video"], batch.targets + 1, 6)
    assert set(probe(batch.inputs["video"]).argmax(1).tolist()) == {1, 2, 3}
    assert probe.bias[[0, 4, 5]].tolist() == [-math.inf] * 3
    only = fit_linear_probe(batch.inputs["video"], torch.full_like(batch.targets, 2), 4)
    assert set(only(batch.inputs["video"]).argmax(1).tolist()) == {2}


def test_the_probe_does_not_depend_on_scale_and_bears_constant_features():
    batch = blobs()
    features = batch.inputs["audio"]
    wide = torch.cat([1e4 * features - 7, torch.full((len(features), 2), 5.0)], 1)
    first, second = (fit_linear_probe(x, batch.targets, 3)(x) for x in (features, wide))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("features", "targets", "options", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), {}, r"should have shape \(N, d\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), {}, "N above 0"),
        (torch.zeros(3, 2), torch.zeros(2).long(), {}, "one class index per sample"),
        (torch.full((2, 2), torch.nan), torch.zeros(2).long(), {}, "should be finite"),
        (torch.zeros(3, 2), torch.zeros(3).long(), {"penalty": -1}, "`penalty` should be a non-negative"),
    ],
)
def test_bad_arguments_of_the_probe(features, targets, options, message):
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(features, targets, 2, **options)


def test_features_are_those_of_evaluation_of_the_samples_that_have_the_modality():
    encoder = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.9)).train()
    batch = blobs(10)
    mask = torch.arange(10) % 2 == 0
    batch.present = {"audio": mask}
    features = extract_features({"audio": encoder}, [batch, batch])["audio"]
    torch.testing.assert_close(features.values[:5], encoder[0](batch.inputs["audio"][mask]).detach())
    assert features.targets.tolist() == 2 * batch.targets[mask].tolist()
    assert encoder[1].training
    batch.present = {"audio": torch.zeros(10, dtype=torch.bool)}
    with pytest.raises(ValueError, match="Found none with 'audio'"):
        extract_features({"audio": encoder}, [batch])
    with pytest.raises(ValueError, match="should hold the modality 'text'"):
        extract_features({"text": encoder}, [batch])
    with pytest.raises(ValueError, match=r"features of shape \(B, d\)"):
        extract_features({"video": lambda x: x[:, 0]}, [batch])


def trained_alone(name, epochs=20, seed=1):
    """An encoder trained under a linear head, by a loop of a few lines."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    untrained = copy.deepcopy(encoder)
    model = nn.Sequential(encoder, nn.Linear(3, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(epochs):
        for batch in TRAIN:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs[name]), batch.targets).backward()
            optimizer.step()
    return TrainedAlone(encoder, model, untrained)


TRAIN, VAL = [blobs(seed=seed) for seed in range(4)], [blobs(300, seed=9)]


def test_an_encoder_that_lost_its_modality_is_found():
    """The joint model's video encoder lets through next to nothing of the class: the probe gap shows it."""
    joint = {u: trained_alone(u, seed=5).encoder for u in ("audio", "video")}
    with torch.no_grad():
        joint["video"][0].weight[:, :3] = 0
    alone = {u: trained_alone(u) for u in joint}
    # Iterators: every split is read once.
    results = compare_probes(joint, alone, iter(TRAIN), iter(VAL), num_classes=3)
    assert results["video"].gap > 0.3
    assert abs(results["audio"].gap) < 0.1
    numbers = results["video"].as_dict()
    assert numbers["samples"] == 300
    assert numbers["alone"] >= numbers["untrained"]
    expected = (alone["video"].classifier(VAL[0].inputs["video"]).argmax(1) == VAL[0].targets).double().mean()
    assert numbers["trained_alone"] == float(expected) > 0.7
    model = bmlr.MultimodalClassifier(joint, 3, feature_dims=dict.fromkeys(joint, 3))
    diagnosis = diagnose(model, VAL, reference=results)
    assert diagnosis.verdict.location["video"] == "encoder"
    assert "It is behind in its encoder" in diagnosis.paragraph


def test_the_modalities_of_a_comparison_agree():
    alone = {"audio": trained_alone("audio", 1)}
    with pytest.raises(
        ValueError, match=r"`alone` should have the modalities of `joint`, \['video'\]. Found \['audio'\]"
    ):
        compare_probes({"video": nn.Linear(5, 3)}, alone, TRAIN, VAL, num_classes=3)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    options = dataclasses.replace(CPU, epochs=2)
    return train(Toy(), Joint(), trainer=options, runs=tmp_path_factory.mktemp("runs"), seed=3).directory


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_probe_makes_ordinary_runs_of_one_modality_and_reuses_them(joint, tmp_path, monkeypatch):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    sentences = []
    first = diagnose_run(joint, probe=True, alone=tmp_path, progress=sentences.append)
    assert torch.equal(torch.rand(2), expected)
    assert sentences == [f"training {u} alone for 2 epochs, in {tmp_path}" for u in ("audio", "image")]
    runs = find_runs([tmp_path])
    assert len(runs) == 2
    joint_config = read_config(joint / "config.yaml")
    for directory in sorted(path.parent for path in tmp_path.rglob("result.json")):
        config = read_config(directory / "config.yaml")
        modality = config.method.modality
        assert config.model == joint_config.model
        assert (config.optimizer, config.trainer, config.seed) == (joint_config.optimizer, joint_config.trainer, 3)
        measures = first.modalities[modality]
        assert measures.trained_alone.value == pytest.approx(evaluate_run(directory, split="val").fused)
    before, reads = stamps(tmp_path), []
    monkeypatch.setattr(Toy, "split", lambda data, name, original=Toy.split: reads.append(name) or original(data, name))
    again = diagnose_run(joint, probe=True, alone=tmp_path)
    assert again.as_dict() == first.as_dict()
    assert stamps(tmp_path) == before
    assert set(reads) == {"train", "val"}


def test_an_interrupted_training_alone_is_resumed(joint, tmp_path, monkeypatch):
    class CutError(Exception):
        pass

    epochs, original = [], Recorder.checkpoint_epoch

    def cut(recorder, module):
        original(recorder, module)
        epochs.append(recorder.config.method.modality)
        if len(epochs) == 1:
            raise CutError

    monkeypatch.setattr(Recorder, "checkpoint_epoch", cut)
    with pytest.raises(CutError):
        diagnose_run(joint, probe=True, alone=tmp_path / "part")
    resumed = diagnose_run(joint, probe=True, alone=tmp_path / "part")
    assert epochs == ["audio", "audio", "image", "image"]
    assert resumed.as_dict() == diagnose_run(joint, probe=True, alone=tmp_path / "whole").as_dict()


def test_samples_that_lack_the_modality_are_left_out(tmp_path):
    data = create("synthetic", samples={"train": 400, "val": 120, "test": 50}, missing={"video": 0.3}, num_classes=3)
    options = dataclasses.replace(CPU, epochs=1)
    run = train(
        data, Joint(), ModelOptions(width=4, fusion="film", conditioner="audio"), trainer=options, runs=tmp_path
    )
    diagnosis = diagnose_run(run.directory, probe=True, weights="last")
    count = int(data.split("val").present["video"].sum())
    assert 0 < count < 120
    assert diagnosis.modalities["video"].samples == count
    paths = tmp_path.glob("synthetic-Unimodal-*/config.yaml")
    (directory,) = [path.parent for path in paths if read_config(path).method.modality == "video"]
    score = evaluate_run(directory, split="val", weights="last")
    assert diagnosis.modalities["video"].trained_alone.value == pytest.approx(score.unimodal["video"])
