"""A run asks its data set for each split once: a data set of a user's own may take long to read it."""

from collections import Counter
from typing import ClassVar

import pytest
from interruptions import CPU, stopping
from subjects import make_run_method

from bmlr.config import ModelOptions, OptimizerOptions
from bmlr.diagnosis import diagnose_run, measure_run_robustness
from bmlr.methods import BMLR, UMT, Joint, Unimodal
from bmlr.runs import RunInterruptedError
from bmlr.training import evaluate_run, train
from toy import Toy

ALL = {"train": 1, "val": 1, "test": 1}


class Counting(Toy):
    """Counts over all objects, for commands make data sets of their own from a run's configuration."""

    asked: ClassVar[Counter[str]] = Counter()

    def split(self, name):
        self.asked[name] += 1
        return super().split(name)


@pytest.fixture(autouse=True)
def _count_anew():
    Counting.asked.clear()


@pytest.mark.parametrize("subject", ["Joint", "BMLR", "ReconBoost", "PMR"])
@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_to_train(tmp_path, subject, protocol):
    train(Counting(24, protocol), make_run_method(subject), trainer=CPU, run=tmp_path / "run")
    assert Counting.asked == ALL


def test_to_train_some_of_the_modalities_by_a_schedule_of_steps(tmp_path):
    optimizer = OptimizerOptions(schedule={"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1}})
    result = train(
        Counting(24), Joint(), ModelOptions(modalities=("audio",)), optimizer, trainer=CPU, run=tmp_path / "run"
    )
    assert Counting.asked == ALL
    assert "without_modality" not in result.content["samples"]


def test_to_train_each_run_that_others_start_from(tmp_path):
    train(Counting(24), UMT(), trainer=CPU, runs=tmp_path)
    runs = len(list(tmp_path.glob("*/result.json")))
    assert runs > 1
    assert Counting.asked == dict.fromkeys(ALL, runs)


def test_to_resume(tmp_path):
    with pytest.raises(RunInterruptedError):
        train(Counting(24), stopping(BMLR(), 2), trainer=CPU, run=tmp_path)
    Counting.asked.clear()
    train(Counting(24), BMLR(), trainer=CPU, run=tmp_path, resume=True)
    assert Counting.asked == ALL
    Counting.asked.clear()
    assert train(Counting(24), BMLR(), trainer=CPU, run=tmp_path).reused
    assert not Counting.asked


def test_to_evaluate_and_to_diagnose(tmp_path):
    run = train(Counting(24), Joint(), trainer=CPU, run=tmp_path / "run").directory
    Counting.asked.clear()
    evaluate_run(run)
    assert Counting.asked == {"test": 1}
    Counting.asked.clear()
    diagnose_run(run)
    assert Counting.asked == {"val": 1}
    Counting.asked.clear()
    measure_run_robustness(run, split="val", noise={"audio": (0.5,)})
    assert Counting.asked == {"train": 1, "val": 1}
    for name in Counting.modalities:
        train(Counting(24), Unimodal(name), trainer=CPU, runs=tmp_path)
    Counting.asked.clear()
    diagnose_run(run, probe=True)  # with the runs there are
    assert Counting.asked == {"train": 1, "val": 1}
