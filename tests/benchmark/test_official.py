"""The benchmark against official code: its literal steps and those of the library end with equal weights."""

import copy
import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import pytest
import torch
from passes import SAMPLES, counted_rows

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import official
from step import Setting

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SETTING = Setting("cpu", batch_size=12, width=2, spectrogram=(20, 20), frames=(1, 20, 20), num_classes=3, clock="cpu",
                  dtype=torch.float64)  # fmt: skip
#: The official code runs the encoders that are held still twice per step.
MOVES_STATISTICS = ("ReconBoost", "ReconBoostBalanceBenchmark")


def train_with_sgd(subject):
    """An optimiser whose steps are as large as the gradients say."""
    subject.optimizer = torch.optim.SGD(subject.optimizer.param_groups[0]["params"], lr=0.05, momentum=0.9)


def assert_equal_after_steps(case, change=lambda subject: None, steps=2):
    """Both sides from equal weights, by an optimiser whose steps are as large as the gradients say."""
    torch.manual_seed(1)
    literal, ours = case.make(SETTING, SETTING.make_batch())
    before = copy.deepcopy(ours.model.state_dict())
    for subject in (literal, ours):
        change(subject)
        subject.optimizer = torch.optim.SGD(subject.optimizer.param_groups[0]["params"], lr=0.05, momentum=0.9)
        for batch in [*subject.batches.values()] * steps:
            subject.take(batch)
    assert literal.batches.keys() == ours.batches.keys()
    expected = {**dict(literal.model.named_parameters()), **dict(literal.method.named_parameters())}
    if case.method not in MOVES_STATISTICS:
        expected |= dict(literal.model.named_buffers())
    found = {**ours.model.state_dict(), **ours.method.state_dict()}
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name in ("encoders.audio.conv1.weight", "encoders.video.conv1.weight"):
        assert not torch.equal(found[name], before[name])


@pytest.mark.parametrize("case", official.CASES, ids=lambda case: case.method)
def test_official_steps_and_ours_end_with_equal_weights(case):
    assert_equal_after_steps(case)


def test_encoder_passes_are_those_of_the_page():
    """Official forwards, ours, official backwards, ours; a step that is not listed makes one of each."""
    section = PAGE.read_text(encoding="utf-8").partition("### Against official code\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    listed = {
        (row[0], row[1].strip("`")): tuple(map(float, row[2:6]))
        for row in cells
        if len(row) == 7 and row[2][:1].isdigit()
    }
    setting = dataclasses.replace(SETTING, batch_size=SAMPLES)
    torch.manual_seed(1)
    batch = setting.make_batch()
    for case in official.CASES:
        literal, ours = case.make(setting, batch)
        for tag in ours.batches:
            found = []
            for subject in (literal, ours):
                with counted_rows(subject.model.encoders.values()) as rows:
                    subject.take(subject.batches[tag])
                found.append([rows[way] / SAMPLES / 2 for way in ("forward", "backward")])
            expected = listed.get((case.method, tag), (1, 1, 1, 1))
            assert tuple(itertools.chain(*zip(*found, strict=True))) == expected, (case.method, tag)
    assert {name for name, _ in listed} <= {case.method for case in official.CASES}
    assert listed


def case_of(method):
    return next(case for case in official.CASES if case.method == method)


def test_a_step_that_agm_clips():
    assert_equal_after_steps(dataclasses.replace(case_of("AGM"), parameters={"clip": 1e-3}))


def test_gradients_of_mmpareto_in_conflict():
    """Heads that want the opposite of the fused loss."""

    def oppose(subject):
        columns = subject.model.fusion.linear.weight.detach().split(16, 1)
        for head, weight in zip(subject.method.heads.values(), columns, strict=True):
            torch.nn.init.zeros_(head.bias)
            head.weight.data.copy_(-weight)

    assert_equal_after_steps(case_of("MMPareto"), oppose)


def test_the_clustering_is_that_of_scikit_learn():
    features, classes = official.make_features(60, 4, 5)
    assert 0.25 < official.our_purity(features, classes, 4) == official.official_purity(features, classes, 4) <= 1


def test_prints_both_tables(capsys, monkeypatch):
    monkeypatch.setattr(official, "clustering", functools.partial(official.clustering, parts=(60, 40), num_classes=4))
    official.main(["--methods", "DiagnosingRelearning", "Remix", "--width", "2", "--batch-size", "12", "--rounds", "2",
                   "--spectrogram", "16", "16", "--frames", "1", "16", "16"])  # fmt: skip
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    first = [row[0].removeprefix("| ") for row in rows]
    assert first[2:4] == ["Joint", "DiagnosingRelearning"]
    assert sorted(first[4:6]) == ["Remix (remix:audio)", "Remix (remix:video)"]
    assert first[-1] == "k-means of a diagnosis"
    assert all(float(row[3]) > 0 for row in (*rows[2:6], rows[-1]))
