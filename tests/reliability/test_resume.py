"""A run that is stopped after any of its steps and resumed ends bit for bit as one that is not."""

import contextlib
import dataclasses
import os
import signal

import pytest
import torch
from interruptions import CPU, Stop, assert_same_run, stopping
from subjects import SUBJECTS, first_of_each_way, make_run_method, method_class

from bmlr.config import ModelOptions, OptimizerOptions
from bmlr.data import ArraySplit
from bmlr.methods import BMLR, EpochPlan, Joint, Pass
from bmlr.runs import RunInterruptedError
from bmlr.runs.storage import read_checkpoint
from bmlr.training import train
from toy import Toy

#: With a schedule, for its state is part of what is resumed.
SCHEDULE = OptimizerOptions(schedule="cosine")


def run(folder, method, *, data=None, trainer=CPU, **options):
    options = {"optimizer": SCHEDULE, **options}
    return train(data or Toy(24), method, trainer=trainer, run=folder, **options)


def count_batches(folder, subject, **options):
    """A whole run and the number of its training batches."""
    method = make_run_method(subject)
    compute_losses, seen = method.compute_losses, []

    def count(model, batch):
        seen.append(batch.tag)
        return compute_losses(model, batch)

    method.compute_losses = count
    run(folder, method, **options)
    return len(seen)


def stop_after_every_step(folder, subject, **options):
    """Resume a run again and again, each time for one step only; the number of times it was stopped."""
    for stops in range(100):
        try:
            run(folder, stopping(make_run_method(subject), 1), resume=True, **options)
        except RunInterruptedError as error:
            assert "was stopped by SIGTERM with a checkpoint after step" in str(error)  # noqa: PT017
        else:
            return stops
    raise AssertionError("The run does not get on.")


@pytest.mark.parametrize("subject", first_of_each_way(s for s in SUBJECTS if method_class(s).trains))
def test_a_run_stopped_after_each_of_its_steps_ends_as_if_it_had_not_been(tmp_path, subject):
    batches = count_batches(tmp_path / "whole", subject)
    assert batches >= 4
    # Its last batch is followed by the result, for which the signal comes too late; the resumed one only forms it.
    assert stop_after_every_step(tmp_path / "cut", subject) == batches
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("subject", ["BMLR", "Remix", "ReconBoost"])
def test_with_workers_too(tmp_path, subject):
    trainer = dataclasses.replace(CPU, num_workers=2)
    count_batches(tmp_path / "whole", subject)
    for at in (2, 3):
        with pytest.raises(RunInterruptedError):
            run(tmp_path / "cut", stopping(make_run_method(subject), at), resume=True, trainer=trainer)
    run(tmp_path / "cut", make_run_method(subject), resume=True, trainer=trainer)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_run_stopped_once_after_any_step_ends_as_if_it_had_not_been(tmp_path, subject, workers):
    """Each step on its own, by an error after a checkpoint of every step, with and without workers."""
    trainer = dataclasses.replace(CPU, checkpoint_every=1, num_workers=workers)
    batches = count_batches(tmp_path / "whole", subject)
    for at in range(2, batches + 1):
        with pytest.raises(Stop):
            run(tmp_path / str(at), stopping(make_run_method(subject), at, None), trainer=trainer)
        run(tmp_path / str(at), make_run_method(subject), resume=True, trainer=trainer)
        assert_same_run(tmp_path / "whole", tmp_path / str(at))


@pytest.mark.parametrize("subject", ["BMLR", "LFM", "ReconBoost", "Remix"])
def test_a_resumed_run_repeats_no_step(tmp_path, subject):
    batches = count_batches(tmp_path / "whole", subject)
    with pytest.raises(RunInterruptedError):
        run(tmp_path / "cut", stopping(make_run_method(subject), 2))
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["bmlr"]["position"] == 2
    assert count_batches(tmp_path / "cut", subject, resume=True) == batches - 2


@pytest.mark.parametrize(
    ("trainer", "at"),
    [
        ({"accumulate_grad_batches": 2, "batch_size": 4}, 1),  # in the middle of an optimiser step, which is finished
        ({"accumulate_grad_batches": 2, "batch_size": 4}, 4),
        ({"accumulate_grad_batches": 4, "batch_size": 4}, 2),  # six batches: the second step has two of them
        ({"gradient_clip_val": 0.1}, 2),
        ({"precision": "bf16-mixed"}, 2),
        ({"precision": "64-true"}, 2),
        ({"on_nonfinite": "skip"}, 2),
        ({"checkpoint_every": 2}, 2),
    ],
)
def test_whatever_the_options(tmp_path, trainer, at):
    options = {"trainer": dataclasses.replace(CPU, **trainer), "optimizer": OptimizerOptions(name="sgd", lr=0.05)}
    run(tmp_path / "whole", make_run_method("OGMGE"), **options)
    with pytest.raises(RunInterruptedError):
        run(tmp_path / "cut", stopping(make_run_method("OGMGE"), at), **options)
    position = read_checkpoint(tmp_path / "cut" / "last.ckpt")["bmlr"]["position"]
    accumulated = trainer.get("accumulate_grad_batches", 1)
    assert position == -(-at // accumulated) * accumulated
    run(tmp_path / "cut", make_run_method("OGMGE"), resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_steps_that_end_with_their_pass_go_on_where_they_were(tmp_path):
    options = {"trainer": dataclasses.replace(CPU, accumulate_grad_batches=2)}
    run(tmp_path / "whole", make_run_method("ReconBoost"), **options)
    per_pass = count_batches(tmp_path / "counted", "ReconBoost") // CPU.epochs // 2
    assert per_pass % 2
    with pytest.raises(RunInterruptedError):
        run(tmp_path / "cut", stopping(make_run_method("ReconBoost"), per_pass), **options)
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["bmlr"]["position"] == per_pass
    for at in (1, 2):
        with pytest.raises(RunInterruptedError):
            run(tmp_path / "cut", stopping(make_run_method("ReconBoost"), at), resume=True, **options)
    run(tmp_path / "cut", make_run_method("ReconBoost"), resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class Drawing(Joint):
    """Draws from all global streams in every batch, and plans passes by what it draws."""

    def plan_epoch(self, context):
        chosen = torch.randperm(context.num_train)[:16].tolist()
        return EpochPlan((Pass("a", tuple(chosen)), Pass("b", fresh_optimizer=True)), order="shuffled")

    def batch_losses(self, model, batch):
        import random

        import numpy as np

        weight = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002, S311
        losses = super().batch_losses(model, batch)
        return type(losses)({name: weight * value for name, value in losses.terms.items()})


class Aligned(Drawing):
    """The same in passes that give each batch twice in a row."""

    def plan_epoch(self, context):
        passes = super().plan_epoch(context).passes
        return EpochPlan((passes[0], dataclasses.replace(passes[0], tag="b")), order="aligned")


@pytest.mark.parametrize("kind", [Drawing, Aligned])
def test_random_streams_and_planned_passes_go_on_where_they_were(tmp_path, kind):
    options = {"trainer": dataclasses.replace(CPU, modality_dropout=0.3)}
    run(tmp_path / "whole", kind(), **options)
    for at in (1, 2, 1, 3, 1):
        with pytest.raises(RunInterruptedError):
            run(tmp_path / "cut", stopping(kind(), at), resume=True, **options)
    run(tmp_path / "cut", kind(), resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class Sequences(Toy):
    """The toy data as sequences, for an encoder with dropout."""

    name = "sequences"

    def __init__(self, samples: int = 24) -> None:
        super().__init__(samples)
        kind = type(self.modalities["audio"])
        self.modalities = {"audio": kind("sequence", (4, 3)), "image": self.modalities["image"]}

    def split(self, name):
        whole = super().split(name)
        audio = whole.inputs["audio"][:, :, None] * [[[1.0, 0.5, -1.0]]]
        return ArraySplit({"audio": audio, "image": whole.inputs["image"]}, whole.targets.numpy())


def test_dropout_goes_on_where_it_was(tmp_path):
    options = {"data": Sequences(), "model": ModelOptions(heads=2, dropout=0.3)}
    run(tmp_path / "whole", BMLR(), **options)
    for at in (1, 1, 2):
        with pytest.raises(RunInterruptedError):
            run(tmp_path / "cut", stopping(BMLR(), at), resume=True, **options)
    run(tmp_path / "cut", BMLR(), resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_interval_of_checkpoints_is_no_part_of_what_a_run_is(tmp_path):
    first = train(Toy(24), BMLR(), trainer=CPU, runs=tmp_path)
    again = train(Toy(24), BMLR(), trainer=dataclasses.replace(CPU, checkpoint_every=1), runs=tmp_path)
    assert again.reused
    assert again.directory == first.directory


def test_a_checkpoint_is_written_every_so_many_steps(tmp_path, monkeypatch):
    positions = []
    written = "bmlr.training._recorder.write_checkpoint"

    def note(path, content, **_):
        positions.append((len(content["bmlr"]["history"]), content["bmlr"]["position"]))

    monkeypatch.setattr(written, note)
    run(tmp_path / "x", BMLR(), trainer=dataclasses.replace(CPU, batch_size=4, checkpoint_every=4))
    assert positions == [(0, 4), (1, 0), (1, 2), (2, 0)]  # steps 4, 6, 8, 12


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    method = stopping(stopping(BMLR(), 2), 2)
    with pytest.raises(RunInterruptedError, match=r"by a second SIGTERM. It has no checkpoint yet: the same command"):
        run(tmp_path / "cut", method)
    assert not (tmp_path / "cut" / "last.ckpt").exists()


def test_the_signal_of_slurm_leaves_a_checkpoint_too(tmp_path, monkeypatch):
    """Lightning's own answer to it would hold a run of several processes for ever."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # to Lightning no SLURM: it looks for no other processes
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(RunInterruptedError, match=r"was stopped by SIGUSR1 with a checkpoint after step 2"):
        run(tmp_path / "cut", stopping(BMLR(), 2, signal.SIGUSR1))
    assert signal.getsignal(signal.SIGUSR1) is before
    run(tmp_path / "cut", BMLR(), resume=True)
    run(tmp_path / "whole", BMLR())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_while_the_result_is_formed_ends_a_run(tmp_path):
    run(tmp_path / "whole", BMLR())
    method = BMLR()
    predict, seen = method.predict, []

    def stop(output):
        seen.append(output)
        if len(seen) == 8:  # three batches in each of two validations, and the second of the test split
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(output)

    method.predict = stop
    with pytest.raises(RunInterruptedError, match=r"was stopped by SIGTERM. Continue it with --resume"):
        run(tmp_path / "cut", method)
    assert not (tmp_path / "cut" / "result.json").exists()
    assert count_batches(tmp_path / "cut", "BMLR", resume=True) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class Slow(Toy):
    """Its preparation is stopped, in a place from which no error comes through at first."""

    def __init__(self, samples: int = 24, swallowed: bool = False) -> None:
        super().__init__(samples)
        self.swallowed = swallowed

    def prepare(self):
        with contextlib.suppress(RunInterruptedError if self.swallowed else ()):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_before_training_ends_a_run_at_once(tmp_path, swallowed):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        RunInterruptedError, match=r"was stopped by SIGTERM. It has no checkpoint yet: the same command"
    ):
        run(tmp_path / "cut", BMLR(), data=Slow(24, swallowed))
    assert signal.getsignal(signal.SIGTERM) is before
