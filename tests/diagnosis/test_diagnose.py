import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F  # noqa: N812

from bmlr.commands._printing import print_table
from bmlr.config import ModelOptions, TrainerOptions, build_model
from bmlr.data import create
from bmlr.diagnosis import RemovalOptions, diagnose, diagnose_run, write_diagnosis
from bmlr.diagnosis._predictions import collect_predictions
from bmlr.diagnosis._removal import make_predictor
from bmlr.diagnosis.measures import accuracy, confidence_gap
from bmlr.methods import Joint
from bmlr.monitor import GradientMonitor
from bmlr.training import load, split_batches, train

CLASSES = 4


def predict(inputs):
    """Logits of a model that trusts audio three times as much as video."""
    return 3.0 * inputs["audio"] + inputs["video"]


def guesses(count=600, audio=0.8, video=0.6, seed=0):
    """Each modality is a guess of the class, right with a known probability."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    inputs = {}
    for name, rate in (("audio", audio), ("video", video)):
        wrong = (targets + torch.randint(1, CLASSES, (count,), generator=generator)) % CLASSES
        right = torch.rand(count, generator=generator) < rate
        inputs[name] = F.one_hot(torch.where(right, targets, wrong), CLASSES).float()
    return [({u: x[i : i + 100] for u, x in inputs.items()}, targets[i : i + 100]) for i in range(0, count, 100)]


def test_measures_of_a_model_of_known_structure():
    data = guesses()
    diagnosis = diagnose(predict, data, module=[], removal=RemovalOptions("zero"))
    targets = torch.cat([y for _, y in data])
    right = {u: torch.cat([x[u] for x, _ in data]).argmax(1) == targets for u in ("audio", "video")}
    audio, video = diagnosis.modalities["audio"], diagnosis.modalities["video"]
    assert diagnosis.samples == 600
    # The model follows audio wherever it is there, so that video alone changes nothing.
    assert diagnosis.accuracy.value == audio.alone.value == float(right["audio"].double().mean())
    assert video.alone.value == float(right["video"].double().mean())
    assert video.drop.value == video.changed_rate.value == 0
    assert audio.drop.value == pytest.approx(audio.alone.value - video.alone.value)
    assert audio.utilisation.value == pytest.approx(audio.drop.value / diagnosis.accuracy.value)
    majority = int(torch.bincount(targets).max()) / 600
    assert diagnosis.majority_rate == majority
    shares = [measures.shapley_accuracy.value for measures in diagnosis.modalities.values()]
    assert sum(shares) == pytest.approx(diagnosis.accuracy.value - majority)
    assert shares[1] == pytest.approx((video.alone.value - majority) / 2)
    both = torch.cat([predict(x) for x, _ in data]).double().log_softmax(1)
    rates = torch.bincount(targets).double() / 600
    gain = (both.gather(1, targets[:, None]).squeeze(1) - rates[targets].log()).mean()
    assert sum(m.shapley_log_probability.value for m in diagnosis.modalities.values()) == pytest.approx(float(gain))
    assert diagnosis.pairs["audio/video"].accuracy_ratio.value == pytest.approx(audio.alone.value / video.alone.value)
    for measures in (audio, video):
        assert measures.alone.low < measures.alone.value < measures.alone.high


@pytest.mark.parametrize("lacking", [False, True])
def test_they_are_the_pure_functions_of_the_predictions(lacking):
    data = create(
        "synthetic", samples={"val": 300}, num_classes=4, missing={"video": 0.4 * lacking, "audio": 0.2 * lacking}
    )
    model = build_model(data, ModelOptions(width=4))
    batches = [data.split("val").batch(range(300))]
    predictions = collect_predictions(make_predictor(model, batches), batches)
    diagnosis = diagnose(model, batches)
    everything, targets = predictions.all_modalities, predictions.targets
    for u, v in (("audio", "video"), ("video", "audio")):
        measures, has, has_another = diagnosis.modalities[u], predictions.present[u], predictions.has_another(u)
        assert bool(has_another.all()) != lacking
        rest = predictions.classes[frozenset({v})]
        assert measures.samples == int(has.sum())
        assert measures.alone.value == pytest.approx(accuracy(predictions.alone(u)[0], targets, has))
        assert measures.without.value == pytest.approx(accuracy(rest, targets, has_another))
        assert measures.changed_rate.value == pytest.approx(
            1 - accuracy(predictions.classes[everything], rest, has_another)
        )
    both = predictions.present["audio"] & predictions.present["video"]
    confidences = [predictions.alone(u)[1].exp() for u in ("audio", "video")]
    size, signed = confidence_gap(*confidences, both)
    pair = diagnosis.pairs["audio/video"]
    assert (pair.confidence_gap.value, pair.signed_confidence_gap.value) == pytest.approx((size, signed))
    assert pair.samples == int(both.sum())


def test_a_modality_that_no_sample_has():
    data = guesses(200)
    batches = [dict_batch(x, y) for x, y in data]
    diagnosis = diagnose(predict, batches, module=[], removal=RemovalOptions("zero"))
    assert math.isnan(diagnosis.modalities["video"].alone.value)
    assert diagnosis.verdict.status["video"] == "unclear"
    assert diagnosis.as_dict()["modalities"]["video"]["alone"] == {"value": None, "low": None, "high": None}
    assert diagnosis.modalities["video"].shapley_accuracy.value == 0


def dict_batch(inputs, targets):
    import bmlr

    return bmlr.Batch(inputs, targets, {"video": torch.zeros(len(targets), dtype=torch.bool)})


def test_verdicts_on_a_function_by_reference():
    data = guesses(2000)
    assert diagnose(predict, data, module=[]).verdict.status == {"audio": "balanced", "video": "weak"}
    fair = diagnose(predict, data, module=[], reference={"audio": 0.8, "video": 0.6})
    assert fair.undertrained == ()
    assert "No modality is undertrained" in fair.paragraph
    behind = diagnose(predict, data, module=[], reference={"audio": 0.8, "video": 0.95})
    assert behind.undertrained == ("video",)
    assert behind.modalities["video"].encoder_gap is None
    silent = diagnose(predict, guesses(2000, video=0.25), module=[], reference={"audio": 0.8, "video": 0.26})
    assert silent.verdict.status["video"] == "uninformative"
    few = diagnose(predict, guesses(60), module=[], reference={"audio": 0.8, "video": 0.95})
    assert set(few.verdict.status.values()) == {"unclear"}
    assert "evidence is insufficient" in few.paragraph
    half = diagnose(predict, data, module=[], reference={"video": 0.95})
    assert half.verdict.status["audio"] == "balanced"


def test_three_modalities():
    data = [({**x, "text": x["video"]}, y) for x, y in guesses(300)]
    diagnosis = diagnose(
        lambda inputs: predict(inputs) + inputs["text"], data, module=[], removal=RemovalOptions("zero")
    )
    assert list(diagnosis.pairs) == ["audio/video", "audio/text", "video/text"]
    shares = {u: measures.shapley_accuracy.value for u, measures in diagnosis.modalities.items()}
    assert shares["video"] == pytest.approx(shares["text"])
    assert sum(shares.values()) == pytest.approx(diagnosis.accuracy.value - diagnosis.majority_rate)


def test_results_are_plain_data_tables_and_files(tmp_path):
    monitor = GradientMonitor()
    monitor._pending = [{"step": 0, "epoch": 0, "norm_audio": 2.0, "norm_video": 1.0, "conflict_video": -0.5}]
    diagnosis = diagnose(
        predict, guesses(), module=[], reference={"audio": 0.8, "video": 0.9}, gradients=monitor, subject="a model"
    )
    written = write_diagnosis(diagnosis, tmp_path / "new" / "folder")
    assert {path.name for path in written} == {
        "diagnosis.json", "diagnosis.md", "accuracies.png", "shapley.png", "confidence.png", "gradients.png",
        "conflict.png",
    }  # fmt: skip
    for path in written:
        assert path.read_bytes()[:4] == b"\x89PNG" or path.suffix != ".png"
    content = json.loads((tmp_path / "new" / "folder" / "diagnosis.json").read_text())
    assert content == json.loads(json.dumps(diagnosis.as_dict()))
    assert content["verdict"]["undertrained"] == list(diagnosis.undertrained) == ["video"]
    assert content["modalities"]["audio"]["alone"]["value"] == diagnosis.modalities["audio"].alone.value
    expected = {"norm": 1.0, "norm_fraction": pytest.approx(1 / 3), "conflict": -0.5, "conflict_rate": 1}
    assert content["gradients"]["video"] == expected
    text = diagnosis.to_markdown()
    assert diagnosis.paragraph in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines if "audio/video" not in line and "pair" not in line} <= {4, 5}
    assert "| accuracy alone | " in text
    console = Console(width=120, record=True, file=io.StringIO())
    for table in diagnosis.tables():
        print_table(table, console)
    printed = console.export_text()
    assert "undertrained" in printed
    assert "accuracy ratio" in printed
    assert len(write_diagnosis(diagnosis, tmp_path, figures=False)) == 2


def joint_run(directory, scenario, seed, epochs=10):
    """A run of joint training on synthetic data."""
    data = create("synthetic", seed=seed, samples={"train": 4000, "val": 1000, "test": 100}, **scenario)
    trainer = TrainerOptions(epochs=epochs, accelerator="cpu", devices=1, progress=False)
    return train(data, Joint(), trainer=trainer, seed=seed, run=directory).directory


HARD = {"accuracy": {"audio": 0.9, "video": 0.9}, "difficulty": {"video": 6}}
SCENARIOS = {
    "video is harder": (HARD, {"audio": "balanced", "video": "undertrained"}),
    "audio is harder": (
        {"accuracy": {"audio": 0.9, "video": 0.9}, "difficulty": {"audio": 6}},
        {"audio": "undertrained", "video": "balanced"},
    ),
    "video says nothing": (
        {"accuracy": {"audio": 0.9, "video": 0.1}, "difficulty": {}},
        {"audio": "balanced", "video": "uninformative"},
    ),
    "both are easy": (
        {"accuracy": {"audio": 0.9, "video": 0.9}, "difficulty": {}},
        {"audio": "balanced", "video": "balanced"},
    ),
}


def check_scenario(directory, scenario, expected, seed):
    run = joint_run(directory, scenario, seed)
    diagnosis = diagnose_run(run, probe=True)
    assert diagnosis.verdict.status == expected, diagnosis.to_markdown()
    reference = {u: measures.trained_alone.value for u, measures in diagnosis.modalities.items()}
    loaded = load(run)
    batches = split_batches(loaded.config, "val")
    plain = diagnose(lambda inputs: loaded.model(inputs).logits, batches, module=loaded.model, reference=reference)
    assert plain.verdict.status == expected, plain.to_markdown()
    return diagnosis


def test_it_names_the_harder_of_two_equally_informative_modalities(tmp_path):
    diagnosis = check_scenario(tmp_path, *SCENARIOS["video is harder"], seed=0)
    assert diagnosis.undertrained == ("video",)
    assert diagnosis.paragraph.startswith("video is undertrained")
    assert dataclasses.asdict(diagnosis.modalities["video"])["probe_untrained"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENARIOS)
def test_it_names_the_right_modality_over_seeds(name, seed, tmp_path):
    check_scenario(tmp_path, *SCENARIOS[name], seed=seed)
