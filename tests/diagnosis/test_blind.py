"""Whether a model looks at a modality: known models, statuses by hand, wrong arguments."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import bmlr
from bmlr.diagnosis import IntervalEstimate, WayEffect, blind_modality_test, write_diagnosis
from bmlr.diagnosis._blind import _judge
from bmlr.diagnosis._replacements import ConstantInput, NoisyInput, ShuffledInput


def samples(count=120, batch_size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 3, generator=generator), torch.randn(count, 2, 2, generator=generator)
    targets = x.sum(1) + y.flatten(1).sum(1)
    return [({"x": x[i:j], "y": y[i:j]}, targets[i:j]) for i in range(0, count, batch_size) for j in [i + batch_size]]


def of_both(inputs, targets):
    return (inputs["x"].sum(1) + inputs["y"].flatten(1).sum(1) - targets).square()


def of_x(inputs, targets):
    return (inputs["x"].sum(1) - targets).square()


def test_an_exact_model_loses_what_the_variance_says():
    test = blind_modality_test(of_both, samples(count=800), module=[], margin=0.1, n_draws=8)
    assert test.status == {"x": "used", "y": "used"}
    assert test.score.value == pytest.approx(0, abs=1e-9)
    for name, variance in (("x", 3), ("y", 4)):
        shuffled, removed = test.effects[name]["shuffled"], test.effects[name]["removed"]
        assert shuffled.worse_by.value == pytest.approx(2 * variance, rel=0.15)  # difference of two independent ones
        assert removed.worse_by.value == pytest.approx(variance, rel=0.15)
        assert shuffled.worse_by.low < 2 * variance < shuffled.worse_by.high
    assert "gets worse by" in test.paragraph


def test_a_model_of_one_modality_is_blind_to_the_other_also_with_an_exact_loss():
    test = blind_modality_test(of_x, samples(), module=[])
    assert test.status == {"x": "used", "y": "blind"}
    assert "The model is blind to y" in test.paragraph
    assert "changes not at all when y is taken from other samples, taken away or replaced by noise" in test.paragraph
    assert test.effects["y"]["shuffled"].sample_change == IntervalEstimate(0, 0, 0)


def test_a_score_that_is_better_when_larger():
    test = blind_modality_test(
        lambda inputs, targets: -of_x(inputs, targets), samples(), module=[], larger_is_better=True
    )
    assert test.status == {"x": "used", "y": "blind"}
    assert test.effects["x"]["shuffled"].worse_by.value > 0


def test_hits_are_a_score_and_answers_are_compared():
    batches = [({"x": torch.eye(3).repeat(30, 1), "y": torch.zeros(90, 1)}, torch.arange(90) % 3)]
    test = blind_modality_test(
        lambda inputs, targets: (inputs["x"].argmax(1) == targets).float(),
        batches,
        module=[],
        larger_is_better=True,
        answer=lambda inputs: inputs["x"].argmax(1),
        score_name="accuracy",
    )
    assert test.status == {"x": "used", "y": "blind"}
    effect = test.effects["x"]["shuffled"]
    assert effect.answer_change.value > 0.7  # a third of the samples are equal
    assert effect.score.value == pytest.approx(1 - effect.answer_change.value)
    assert effect.worse_by.value == pytest.approx(effect.answer_change.value)
    assert "answers changed by" in test.tables()[0].heads


def effect(worse, change):
    return WayEffect(IntervalEstimate(1, 1, 1), IntervalEstimate(*worse), IntervalEstimate(*change))


@pytest.mark.parametrize(
    ("shuffled", "noise", "status"),
    [
        (effect((1, 0.8, 1.2), (1, 0.8, 1.2)), effect((0, 0, 0), (0, 0, 0)), "used"),
        (effect((-1, -1.2, -0.8), (1, 0.8, 1.2)), effect((0, 0, 0), (0, 0, 0)), "harmful"),
        (effect((0, -0.02, 0.02), (0.05, 0.04, 0.09)), effect((0, 0, 0), (0.05, 0.04, 0.06)), "blind"),
        (effect((0, -0.02, 0.02), (0.05, 0.04, 0.09)), effect((2, 1, 3), (2, 1, 3)), "disturbed"),
        (effect((0, -0.02, 0.02), (0.5, 0.4, 0.6)), effect((0, 0, 0), (0, 0, 0)), "no gain"),
        (effect((0.2, -0.3, 0.5), (0.5, 0.4, 0.6)), effect((0, 0, 0), (0, 0, 0)), "unclear"),
        (effect((0.05, 0.01, 0.15), (0.08, 0.02, 0.2)), effect((0, 0, 0), (0, 0, 0)), "unclear"),
    ],
)
def test_statuses(shuffled, noise, status):
    assert _judge({"shuffled": shuffled, "noise": noise}, margin=0.1) == status


def test_inputs_of_several_tensors_are_replaced_together_and_masks_stay():
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(12).reshape(6, 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones(6, 2).long(), "sound": ids.float()}
    pool = list(inputs.values())
    shuffled = ShuffledInput(pool, generator)(inputs)
    assert torch.equal(shuffled["input_ids"].float(), shuffled["sound"])
    assert bool((shuffled["input_ids"] != ids).any(1).all())
    noisy = NoisyInput(pool, generator)(inputs)
    assert torch.equal(noisy["attention_mask"], inputs["attention_mask"])
    assert noisy["input_ids"].dtype == torch.int64
    assert set(noisy["input_ids"].flatten().tolist()) <= set(range(12))
    assert not torch.equal(noisy["sound"], inputs["sound"])
    constant = ConstantInput("text", {key: x[0] for key, x in inputs.items()})(inputs)
    assert torch.equal(constant["input_ids"], ids[:1].expand(6, 2))
    with pytest.raises(ValueError, match=r"`baselines\['text'\]` should have the shape of one sample"):
        ConstantInput("text", {"input_ids": torch.zeros(3)})(inputs)


def test_words_are_removed_by_a_baseline_only():
    words = torch.randint(9, (64, 4), generator=torch.Generator().manual_seed(0))
    batches = [({"image": torch.randn(64, 3), "text": {"ids": words, "mask": torch.ones(64, 4)}}, words[:, 0])]

    def loss(inputs, targets):
        return (inputs["text"]["ids"][:, 0] - targets).abs().float() + inputs["text"]["mask"].sum(1) - 4

    test = blind_modality_test(loss, batches, module=[])
    assert list(test.effects["text"]) == ["shuffled", "noise"]
    baseline = {"text": {"ids": torch.zeros(4), "mask": torch.ones(4)}}
    removed = blind_modality_test(loss, batches, module=[], baselines=baseline).effects["text"]["removed"]
    assert removed.score.value == pytest.approx(float(words[:, 0].float().mean()))


def test_a_classifier_of_any_task_is_tested_by_its_loss(tmp_path):
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({"x": nn.Linear(3, 4), "y": nn.Sequential(nn.Flatten(), nn.Linear(4, 4))},
                                      bmlr.tasks.Regression())  # fmt: skip
    with torch.no_grad():
        for parameter in model.encoders["y"].parameters():
            parameter.zero_()
    batches = [bmlr.Batch(inputs, targets) for inputs, targets in samples()]
    test = blind_modality_test(model, batches)
    assert test.status["y"] == "blind"
    inputs, targets = batches[0].inputs, batches[0].targets
    with torch.no_grad():
        expected = nn.functional.mse_loss(model(inputs).logits[:, 0], targets)
    first = blind_modality_test(model, batches[:1])
    assert first.score.value == pytest.approx(float(expected), rel=1e-5)
    files = write_diagnosis(test, tmp_path)
    assert {path.name for path in files} == {"diagnosis.json", "diagnosis.md", "effects.png"}
    assert json.loads((tmp_path / "diagnosis.json").read_text())["status"]["y"] == "blind"


def test_samples_without_a_modality_do_not_count_for_it():
    batches = [bmlr.Batch(inputs, targets) for inputs, targets in samples()]
    mask = torch.arange(40) < 30
    masked = [bmlr.Batch({**b.inputs}, b.targets, {"y": mask}) for b in batches]
    test = blind_modality_test(of_both, masked, module=[], margin=0.1)
    assert test.effects["y"]["shuffled"].worse_by.value > 0
    assert np.isfinite(test.effects["y"]["shuffled"].worse_by.low)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"one number per sample, shape \(40,\), .* Found shape \(\)"):
        blind_modality_test(lambda inputs, targets: of_x(inputs, targets).mean(), samples(), module=[])
    with pytest.raises(ValueError, match="NaN or infinite numbers in batch 0, as it is"):
        blind_modality_test(lambda inputs, targets: of_x(inputs, targets) * torch.nan, samples(), module=[])
    with pytest.raises(ValueError, match="`module` should be given with a function"):
        blind_modality_test(of_x, samples())
    with pytest.raises(ValueError, match="iterable more than once"):
        blind_modality_test(of_x, iter(samples()), module=[])
    with pytest.raises(ValueError, match=r"should hold the modalities \['z'\]"):
        blind_modality_test(of_x, samples(), module=[], modalities=["z"])
    with pytest.raises(ValueError, match="should be bmlr.Batch or pairs"):
        blind_modality_test(of_x, [{"x": torch.zeros(2)}], module=[])
    few = blind_modality_test(of_x, samples(count=20, batch_size=20), module=[])
    assert set(few.status.values()) == {"unclear"}
    assert "20 samples are few" in few.paragraph
