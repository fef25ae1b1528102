"""Scores under missing and noisy modalities: by hand, by the command, and for models of one's own."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import bmlr
from bmlr.cli import main
from bmlr.config import TrainerOptions
from bmlr.diagnosis import RemovalOptions, measure_robustness
from bmlr.methods import ReconBoost
from bmlr.training import evaluate_run, train
from toy import Toy


def samples(count=60, batch_size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    audio = torch.randn(count, 4, generator=generator) * 5 + targets[:, None] * 4
    text = torch.randn(count, 6, generator=generator) + targets[:, None]
    return [
        ({"audio": audio[i : i + batch_size], "text": text[i : i + batch_size]}, targets[i : i + batch_size])
        for i in range(0, count, batch_size)
    ]


def classifier(task=3):
    torch.manual_seed(0)
    return bmlr.MultimodalClassifier({"audio": nn.Linear(4, 8), "text": nn.Linear(6, 8)}, task)


def accuracy(model, batches, **present):
    ((inputs, targets),) = batches
    with torch.no_grad():
        logits = model(inputs, present or None).logits
    return float((logits.argmax(1) == targets).float().mean())


def test_missing_modalities_are_absent_ones():
    model, batches = classifier(), samples()
    measured = measure_robustness(model, batches, {"audio": [0, 0.5, 1]}, seed=3)
    scores = {rate: score.scores for rate, score in measured.sweeps["missing audio"]}
    assert scores[0]["fused"].value == pytest.approx(accuracy(model, batches))
    gone = torch.zeros(60, dtype=torch.bool)
    assert scores[1]["fused"].value == pytest.approx(accuracy(model, batches, audio=gone))
    assert np.isnan(scores[1]["audio"].value)
    assert scores[1]["text"].value == scores[0]["text"].value
    lost = measured.sweeps["missing audio"][2][1].lost
    assert lost.value == pytest.approx(accuracy(model, batches) - accuracy(model, batches, audio=gone))
    assert lost.low < lost.value < lost.high


def test_draws_are_of_the_sample_not_of_the_batch():
    model = classifier()
    options = {"missing": {"audio": [0.3, 0.6], "text": 0.2}, "noise": {"text": 0.5}, "training_batches": samples()}
    whole, pieces, other = (
        measure_robustness(model, samples(batch_size=size), seed=seed, **options).as_dict()["scores"]
        for size, seed in ((60, 0), (7, 0), (60, 1))
    )
    assert whole == pieces
    assert whole != other


def test_what_is_missing_at_one_rate_is_missing_at_every_larger_one():
    seen = []

    def model(inputs):
        seen.append(inputs["audio"].sum(1) == 0)
        return inputs["text"][:, :3]

    measure_robustness(
        model, samples(), {"audio": [0.2, 0.5, 0.9]}, module=[], removal=RemovalOptions("zero", ["audio", "text"])
    )
    clean, *rates = seen
    assert not clean.any()
    assert [int(x.sum()) for x in rates] == pytest.approx([12, 30, 54], abs=9)
    for smaller, larger in itertools.pairwise(rates):
        assert bool((larger | ~smaller).all())


def test_noise_is_in_units_of_the_inputs_deviation_and_spares_padding():
    seen = []

    def model(inputs):
        seen.append(inputs["audio"].clone())
        return inputs["audio"][:, 0, :3]

    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(200, 10, 5, generator=generator) + 7
    x[:, 6:] = 0
    batches = [({"audio": x, "text": torch.zeros(200, 1)}, torch.arange(200) % 3)]
    measure_robustness(model, batches, noise={"audio": 0.5}, module=[])
    added = seen[1] - seen[0]
    assert bool((added[:, 6:] == 0).all())
    assert float(added[:, :6].std()) == pytest.approx(0.5 * 3, rel=0.05)
    assert float(added.mean()) == pytest.approx(0, abs=0.1)


def test_integers_take_no_noise_and_wrong_arguments_are_named():
    batches = [({"ids": torch.ones(6, 4).long(), "audio": torch.randn(6, 4)}, torch.arange(6) % 3)]
    options = {"module": [], "removal": RemovalOptions("shuffle")}

    def model(inputs):
        return inputs["audio"][:, :3]

    with pytest.raises(ValueError, match="Noise needs floating-point inputs. 'ids' has none"):
        measure_robustness(model, batches, noise={"ids": 1.0}, **options)
    measured = measure_robustness(model, batches, {"ids": [0, 1]}, **options)  # the model never looks at them
    assert measured.sweeps["missing ids"][1][1].lost.value == 0
    with pytest.raises(ValueError, match="`missing` should name modalities among ids, audio. Found 'adio'"):
        measure_robustness(model, batches, {"adio": 1.0}, **options)
    with pytest.raises(ValueError, match=r"`missing\['ids'\]` should lie in \[0, 1\]"):
        measure_robustness(model, batches, {"ids": 1.5}, **options)
    with pytest.raises(ValueError, match="`missing` or `noise` should name a modality"):
        measure_robustness(model, batches, **options)


def test_a_wrapped_model_loses_what_it_needs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.ear, self.eye, self.head = nn.Linear(4, 3), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, audio, text):
            return self.head(torch.cat([self.ear(audio), 0 * self.eye(text)], 1))

    batches = samples()
    model = bmlr.wrap(Net(), {"audio": "ear", "text": "eye"}, batches[0][0])
    measured = measure_robustness(model, batches, {"audio": [0, 1], "text": [0, 1]}, {"text": 2})
    assert measured.sweeps["missing text"][1][1].lost.value == 0
    assert measured.fixed.lost.value == 0
    assert len({score.scores["fused"].value for _, score in measured.sweeps["missing audio"]}) == 2


def test_numbers_and_labels_are_scored_by_their_own_metric():
    ((inputs, targets),) = samples()
    model = classifier(bmlr.tasks.Regression())
    measured = measure_robustness(model, [(inputs, targets.float()[:, None])], {"audio": [0, 1]})
    assert measured.metric == "mae"
    with torch.no_grad():
        errors = [
            float((model(inputs, present).logits[:, 0] - targets).abs().mean())
            for present in (None, {"audio": torch.zeros(60, dtype=torch.bool)})
        ]
    assert [score.scores["fused"].value for _, score in measured.sweeps["missing audio"]] == pytest.approx(errors)
    assert measured.sweeps["missing audio"][1][1].lost.value == pytest.approx(errors[1] - errors[0])
    labels = nn.functional.one_hot(targets, 3).float()
    measured = measure_robustness(classifier(bmlr.tasks.MultiLabel(3)), [(inputs, labels)], {"audio": [0, 1]})
    assert measured.metric == "mean_average_precision"
    assert np.isnan(measured.sweeps["missing audio"][1][1].lost.low)
    assert "nan" not in measured.table().markdown()


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    trainer = TrainerOptions(epochs=2, accelerator="cpu", devices=1, progress=False)
    run = train(Toy(), ReconBoost(), trainer=trainer, run=tmp_path / "run").directory
    test = evaluate_run(run, weights="last").as_dict()  # the first epoch's ensemble has one member
    command = ["evaluate", str(run), "--weights", "last", "--missing", "audio", "--noise", "image=0.5", "audio=0,1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "audio missing in 75 %, noise of 0.5 std on image" in printed
    content = json.loads((run / "robustness" / "robustness.json").read_text())
    assert content["scores"][0]["scores"]["fused"]["value"] == pytest.approx(test["accuracy"])
    assert content["scores"][0]["scores"]["image"]["value"] == pytest.approx(test["unimodal_accuracy"]["image"])
    # clean, the fixed noise, four further rates and one further level
    assert len(content["scores"]) == 7
    names = {path.name for path in (run / "robustness").iterdir()}
    assert names == {f"robustness.{ending}" for ending in ("json", "md", "tex", "csv", "png")}
    # without audio the ensemble is the other learner
    gone = next(row for row in content["scores"] if row["missing"] == {"audio": 1.0})["scores"]
    assert gone["audio"]["value"] is None
    assert gone["fused"]["value"] == pytest.approx(gone["image"]["value"])
    for wrong, message in (
        (["--missing", "audoi"], "Found 'audoi'. Did you mean 'audio'?"),
        (["--noise", "audio=x"], "should be modalities with numbers, as audio=0.5"),
        (["--missing", "audio", "audio=1"], "names audio twice"),
        (["--out", "x"], "Option --out needs --missing or --noise"),
    ):
        assert main(["evaluate", str(run), *wrong]) == 2
        assert message in capsys.readouterr().err
