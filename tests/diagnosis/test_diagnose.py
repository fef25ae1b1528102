import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F  # noqa: N812

from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, build_model, fill_defaults
from bmlr.data import create
from bmlr.diagnosis import accuracy, changed_share, confidence_gap, diagnose, probe_gap, write_diagnosis
from bmlr.diagnosis._readings import collect
from bmlr.diagnosis._removal import make_reader
from bmlr.methods import EpochPlan, Joint
from bmlr.monitor import GradientMonitor
from bmlr.training.loader import planned_requests

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
    found = diagnose(predict, data, remove="zero")
    targets = torch.cat([y for _, y in data])
    right = {u: torch.cat([x[u] for x, _ in data]).argmax(1) == targets for u in ("audio", "video")}
    audio, video = found.modalities["audio"], found.modalities["video"]
    assert found.samples == 600
    # The model follows audio wherever it is there, so that video alone changes nothing.
    assert found.accuracy.value == audio.alone.value == float(right["audio"].double().mean())
    assert video.alone.value == float(right["video"].double().mean())
    assert video.drop.value == video.changed.value == 0
    assert audio.drop.value == pytest.approx(audio.alone.value - video.alone.value)
    assert audio.utilisation.value == pytest.approx(audio.drop.value / found.accuracy.value)
    majority = int(torch.bincount(targets).max()) / 600
    assert found.majority_rate == majority
    shares = [measures.shapley_accuracy.value for measures in found.modalities.values()]
    assert sum(shares) == pytest.approx(found.accuracy.value - majority)
    assert shares[1] == pytest.approx((video.alone.value - majority) / 2)
    both = torch.cat([predict(x) for x, _ in data]).double().log_softmax(1)
    rates = torch.bincount(targets).double() / 600
    gain = (both.gather(1, targets[:, None]).squeeze(1) - rates[targets].log()).mean()
    assert sum(m.shapley_log_probability.value for m in found.modalities.values()) == pytest.approx(float(gain))
    assert found.pairs["audio/video"].accuracy_ratio.value == pytest.approx(audio.alone.value / video.alone.value)
    for measures in (audio, video):
        assert measures.alone.low < measures.alone.value < measures.alone.high


@pytest.mark.parametrize("lacking", [False, True])
def test_they_are_the_pure_functions_of_the_readings(lacking):
    data = create(
        "synthetic", samples={"val": 300}, num_classes=4, missing={"video": 0.4 * lacking, "audio": 0.2 * lacking}
    )
    model = build_model(data, ModelOptions(width=4))
    batches = [data.split("val").batch(range(300))]
    readings = collect(make_reader(model, batches), batches)
    found = diagnose(model, batches)
    everything, targets = readings.everything, readings.targets
    for u, v in (("audio", "video"), ("video", "audio")):
        measures, has, can_lose = found.modalities[u], readings.present[u], readings.can_lose(u)
        assert bool(can_lose.all()) != lacking
        rest = readings.predictions[frozenset({v})]
        assert measures.samples == int(has.sum())
        assert measures.alone.value == pytest.approx(accuracy(readings.alone(u)[0], targets, has))
        assert measures.left_out.value == pytest.approx(accuracy(rest, targets, can_lose))
        assert measures.changed.value == pytest.approx(changed_share(readings.predictions[everything], rest, can_lose))
    both = readings.present["audio"] & readings.present["video"]
    confidences = [readings.alone(u)[1].exp() for u in ("audio", "video")]
    size, signed = confidence_gap(*confidences, both)
    pair = found.pairs["audio/video"]
    assert (pair.confidence_gap.value, pair.signed_confidence_gap.value) == pytest.approx((size, signed))
    assert pair.samples == int(both.sum())


def test_a_modality_that_no_sample_has():
    data = guesses(200)
    batches = [dict_batch(x, y) for x, y in data]
    found = diagnose(predict, batches, remove="zero")
    assert math.isnan(found.modalities["video"].alone.value)
    assert found.verdict.status["video"] == "unclear"
    assert found.as_dict()["modalities"]["video"]["alone"] == {"value": None, "low": None, "high": None}
    assert found.modalities["video"].shapley_accuracy.value == 0


def dict_batch(inputs, targets):
    import bmlr

    return bmlr.Batch(inputs, targets, {"video": torch.zeros(len(targets), dtype=torch.bool)})


def test_verdicts_on_a_function_by_reference():
    data = guesses(2000)
    assert diagnose(predict, data).verdict.status == {"audio": "balanced", "video": "weak"}
    fair = diagnose(predict, data, reference={"audio": 0.8, "video": 0.6})
    assert fair.undertrained == ()
    assert "No modality is undertrained" in fair.paragraph
    behind = diagnose(predict, data, reference={"audio": 0.8, "video": 0.95})
    assert behind.undertrained == ("video",)
    assert behind.modalities["video"].encoder_gap is None
    silent = diagnose(predict, guesses(2000, video=0.25), reference={"audio": 0.8, "video": 0.26})
    assert silent.verdict.status["video"] == "uninformative"
    few = diagnose(predict, guesses(60), reference={"audio": 0.8, "video": 0.95})
    assert set(few.verdict.status.values()) == {"unclear"}
    assert "evidence is insufficient" in few.paragraph
    half = diagnose(predict, data, reference={"video": 0.95})
    assert half.verdict.status["audio"] == "balanced"


def test_three_modalities():
    data = [({**x, "text": x["video"]}, y) for x, y in guesses(300)]
    found = diagnose(lambda inputs: predict(inputs) + inputs["text"], data, remove="zero")
    assert list(found.pairs) == ["audio/video", "audio/text", "video/text"]
    shares = {u: measures.shapley_accuracy.value for u, measures in found.modalities.items()}
    assert shares["video"] == pytest.approx(shares["text"])
    assert sum(shares.values()) == pytest.approx(found.accuracy.value - found.majority_rate)


def test_results_are_plain_data_tables_and_files(tmp_path):
    monitor = GradientMonitor()
    monitor._pending = [{"step": 0, "epoch": 0, "norm_audio": 2.0, "norm_video": 1.0, "conflict_video": -0.5}]
    found = diagnose(predict, guesses(), reference={"audio": 0.8, "video": 0.9}, gradients=monitor, subject="a model")
    written = write_diagnosis(found, tmp_path / "new" / "folder")
    assert {path.name for path in written} == {
        "diagnosis.json", "diagnosis.md", "accuracies.png", "shapley.png", "confidence.png", "gradients.png",
        "conflict.png",
    }  # fmt: skip
    for path in written:
        assert path.read_bytes()[:4] == b"\x89PNG" or path.suffix != ".png"
    content = json.loads((tmp_path / "new" / "folder" / "diagnosis.json").read_text())
    assert content == json.loads(json.dumps(found.as_dict()))
    assert content["verdict"]["undertrained"] == list(found.undertrained) == ["video"]
    assert content["modalities"]["audio"]["alone"]["value"] == found.modalities["audio"].alone.value
    expected = {"norm": 1.0, "share": pytest.approx(1 / 3), "conflict": -0.5, "conflict_rate": 1}
    assert content["gradients"]["video"] == expected
    text = found.to_markdown()
    assert found.paragraph in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines if "audio/video" not in line and "pair" not in line} <= {4, 5}
    assert "| accuracy alone | " in text
    console = Console(width=120, record=True, file=io.StringIO())
    for table in found.tables():
        console.print(table)
    printed = console.export_text()
    assert "undertrained" in printed
    assert "accuracy ratio" in printed
    assert len(write_diagnosis(found, tmp_path, figures=False)) == 2


def joint_training(scenario, seed, epochs=10):
    """Joint training on synthetic data; the model, its data, and training alone with the same budget."""
    data = create("synthetic", seed=seed, samples={"train": 4000, "val": 1000}, **scenario)
    trainer = TrainerOptions(epochs=epochs, accelerator="cpu")
    config = RunConfig(data, Joint(), *fill_defaults(data, ModelOptions(), OptimizerOptions(), trainer), seed=seed)
    torch.manual_seed(seed)
    model, split = build_model(data, config.model), data.split("train")
    optimizer = config.optimizer.optimizer(model.parameters())
    for epoch in range(epochs):
        model.train()
        for request in planned_requests(EpochPlan(), len(split), 64, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            config.method.compute_losses(model, split.batch(request.indices)).total.backward()
            optimizer.step()
    val = data.split("val")
    return model, [val.batch(range(start, start + 250)) for start in range(0, 1000, 250)], probe_gap(config, model)


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


def check_scenario(scenario, expected, seed):
    model, batches, gaps = joint_training(scenario, seed)
    found = diagnose(model, batches, probe=gaps)
    assert found.verdict.status == expected, found.to_markdown()
    reference = {u: gap.head_accuracy for u, gap in gaps.items()}
    plain = diagnose(lambda inputs: model(inputs).logits, batches, reference=reference)
    assert plain.verdict.status == expected, plain.to_markdown()
    return found


def test_it_names_the_harder_of_two_equally_informative_modalities():
    found = check_scenario(*SCENARIOS["video is harder"], seed=0)
    assert found.undertrained == ("video",)
    assert found.paragraph.startswith("video is undertrained")
    assert dataclasses.asdict(found.modalities["video"])["probe_untrained"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENARIOS)
def test_it_names_the_right_modality_over_seeds(name, seed):
    check_scenario(*SCENARIOS[name], seed=seed)
