import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import bmlr
from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, build_model, fill_defaults
from bmlr.data import create
from bmlr.diagnosis import diagnose, extract_features, fit_linear_probe, probe_gap, probe_gap_of, train_alone
from bmlr.diagnosis._alone import _indices_with
from bmlr.methods import Joint
from bmlr.training import train

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy import Toy

CPU = TrainerOptions(accelerator="cpu", devices=1, progress=False)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


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


def test_the_probe_is_that_of_scikit_learn():
    batch, penalty = blobs(), 1e-2
    features = batch.inputs["video"]
    probe = fit_linear_probe(features, batch.targets, 3, penalty=penalty)
    standardised = ((features.double() - probe.mean) / probe.scale).numpy()
    reference = LogisticRegression(C=1 / (penalty * len(features)), tol=1e-8, max_iter=1000)
    reference.fit(standardised, batch.targets.numpy())
    np.testing.assert_allclose(probe.weight.numpy(), reference.coef_, atol=1e-4)
    expected = reference.predict_proba(standardised)
    np.testing.assert_allclose(probe(features).softmax(1).numpy(), expected, atol=1e-4)
    assert probe.gradient_norm < 1e-5


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
    found = extract_features({"audio": encoder}, [batch, batch])["audio"]
    torch.testing.assert_close(found.values[:5], encoder[0](batch.inputs["audio"][mask]).detach())
    assert found.targets.tolist() == 2 * batch.targets[mask].tolist()
    assert encoder[1].training
    batch.present = {"audio": torch.zeros(10, dtype=torch.bool)}
    with pytest.raises(ValueError, match="Found none with 'audio'"):
        extract_features({"audio": encoder}, [batch])
    with pytest.raises(ValueError, match="should hold the modality 'text'"):
        extract_features({"text": encoder}, [batch])
    with pytest.raises(ValueError, match=r"features of shape \(B, d\)"):
        extract_features({"video": lambda x: x[:, 0]}, [batch])


def encoders(seed):
    torch.manual_seed(seed)
    return {u: nn.Sequential(nn.Linear(5, 3), nn.ReLU()) for u in ("audio", "video")}


def test_an_encoder_that_lost_its_modality_is_found():
    """The joint model's video encoder lets through next to nothing of the class: the probe gap shows it."""
    data = [blobs(seed=seed) for seed in range(4)]
    joint = encoders(0)
    torch.manual_seed(5)
    joint["audio"] = train_alone("audio", joint["audio"], data, data, num_classes=3, epochs=8, optimizer=adam).encoder
    with torch.no_grad():
        joint["video"][0].weight[:, :3] = 0
    gaps = probe_gap_of(
        joint, lambda name: encoders(1)[name], data, [blobs(300, seed=9)], num_classes=3, epochs=8, optimizer=adam
    )
    assert gaps["video"].gap > 0.3
    assert abs(gaps["audio"].gap) < 0.1
    assert gaps["video"].as_dict()["samples"] == 300
    assert gaps["video"].alone_accuracy >= gaps["video"].untrained_accuracy
    assert gaps["video"].head_accuracy > 0.7
    model = bmlr.MultimodalClassifier(joint, 3, feature_dims=dict.fromkeys(joint, 3))
    found = diagnose(model, [blobs(300, seed=9)], probe=gaps)
    assert found.verdict.place["video"] == "encoder"
    assert "It is behind in its encoder" in found.paragraph


def test_training_alone_keeps_the_best_epoch_and_skips_samples_that_lack_the_modality():
    data = blobs()
    data.inputs["audio"][::2] = 1e6  # would ruin the training if it were looked at
    data.present = {"audio": torch.arange(len(data)) % 2 == 1}
    torch.manual_seed(0)
    found = train_alone("audio", encoders(0)["audio"], [data], [data], num_classes=3, epochs=30, optimizer=adam)
    mask = data.present["audio"]
    hits = found.head(found.encoder(data.inputs["audio"][mask])).argmax(1) == data.targets[mask]
    assert float(hits.float().mean()) > 0.8
    last = train_alone(
        "audio", encoders(0)["audio"], [data], [data], num_classes=3, epochs=3, optimizer=adam, select="last"
    )
    assert last.epoch == 2
    assert not torch.equal(last.untrained[0].weight, last.encoder[0].weight)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"clip": 0.1, "accumulate": 3}]
)
def test_training_alone_takes_the_options_of_a_run(options):
    data = [blobs(40, seed=seed) for seed in range(4)]
    found = train_alone("audio", encoders(0)["audio"], data, data, num_classes=3, epochs=10, optimizer=adam, **options)
    assert found.encoder[0].weight.dtype == (torch.float64 if options.get("precision") == "64-true" else torch.float32)
    features = extract_features({"audio": found.encoder}, data)["audio"]
    assert float((found.head(features.values).argmax(1) == features.targets).float().mean()) > 0.8


def test_accumulated_batches_are_one_step():
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            Counting.steps += 1
            return super().step(closure)

    data = [blobs(8, seed=seed) for seed in range(5)]
    train_alone("audio", encoders(0)["audio"], data, data, num_classes=3, epochs=1, accumulate=2,
                optimizer=lambda parameters: Counting(parameters, 0.1))  # fmt: skip
    assert Counting.steps == 3


def test_a_loss_that_is_not_finite_is_named():
    data = blobs()
    data.inputs["audio"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="Training 'audio' alone: the loss is not finite in epoch 0, batch 0"):
        train_alone("audio", encoders(0)["audio"], [data], [data], num_classes=3, epochs=1, optimizer=adam)


def test_the_gap_of_a_run_and_of_its_configuration(tmp_path):
    data = Toy()
    result = train(data, Joint(), trainer=dataclasses.replace(CPU, epochs=2), runs=tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    told = []
    gaps = probe_gap(result.directory, progress=told.append)
    assert torch.equal(torch.rand(2), expected)
    assert set(gaps) == {"audio", "image"}
    assert told == ["training audio alone for 2 epochs", "training image alone for 2 epochs"]
    for gap in gaps.values():
        assert len(gap.targets) == 40
        assert gap.targets.tolist() == data.split("val").targets.tolist()
    again = probe_gap(result.directory)
    assert {u: gap.as_dict() for u, gap in gaps.items()} == {u: gap.as_dict() for u, gap in again.items()}
    with pytest.raises(ValueError, match="`model` should be left out"):
        probe_gap(result.directory, build_model(data, ModelOptions()))
    with pytest.raises(ValueError, match="`split` should be one of val, test"):
        probe_gap(result.directory, split="train")
    with pytest.raises(FileNotFoundError, match="There is no run"):
        probe_gap(tmp_path / "nowhere")


def test_a_configuration_needs_its_model_and_training_alone_is_as_its_run():
    data = create("synthetic", samples={"train": 400, "val": 100}, missing={"video": 0.3}, num_classes=3)
    options = fill_defaults(data, ModelOptions(width=4), OptimizerOptions(), dataclasses.replace(CPU, epochs=1))
    config = RunConfig(data, Joint(), *options, seed=0)
    with pytest.raises(ValueError, match="`model` should be given with a configuration"):
        probe_gap(config)
    model = build_model(data, config.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gaps = probe_gap(config, model, weights="last")
    assert len(gaps["audio"].targets) == 100
    assert len(gaps["video"].targets) == int(data.split("val").present["video"].sum())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_samples_that_have_a_modality_are_found_by_position():
    batches = [blobs(3), blobs(2)]
    assert _indices_with("audio", batches, 5) is None
    for batch, mask in zip(batches, ([True, False, True], [False, True]), strict=True):
        batch.present = {"audio": torch.tensor(mask)}
    assert _indices_with("audio", batches, 5) == (0, 2, 4)
    assert _indices_with("video", batches, 5) == (0, 1, 2, 3, 4)
