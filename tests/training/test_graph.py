"""Steps as graphs, recorded on the CPU as CUDA would hold them: the numbers of the eager steps, bit for bit."""

import dataclasses
import logging

import pytest
import torch
from safetensors.torch import load_file

from bmlr.config import OptimizerOptions, TrainerOptions
from bmlr.methods import BMLR, OGMGE, Joint, Losses
from bmlr.runs import RunError, read_metrics
from bmlr.training import NonFiniteLossError, _graph_choice, train
from bmlr.training._graph import CapturedStep
from recorded_graph import RecordedGraphs
from toy import Toy

#: Eleven batches of eight and one of two: three eager ones, one captured and replayed, seven replayed, one eager.
DATA = Toy(90)
OPTIONS = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", devices=1, progress=False, logger=None)


@pytest.fixture
def graphs(monkeypatch):
    backend = RecordedGraphs()
    monkeypatch.setattr(_graph_choice, "graph_backend", lambda device: backend)
    return backend


def run(tmp_path, graph, method=None, data=DATA, **options):
    trainer = dataclasses.replace(OPTIONS, graph=graph, **options)
    name = "-".join([graph, str(len(list(tmp_path.iterdir())))])
    return train(data, method or Joint(), None, OptimizerOptions(lr=1e-2), trainer, run=tmp_path / name)


def assert_equal_runs(first, second):
    for name in ("last", "best"):
        one, two = (load_file(result.directory / f"{name}.safetensors") for result in (first, second))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]), key
    one, two = (read_metrics(result.directory).drop(columns="seconds") for result in (first, second))
    assert one.equals(two)


@pytest.mark.parametrize(
    ("method", "options", "captures"),
    [
        (BMLR, {"accumulate_grad_batches": 2}, 2),  # of the first batch of a step, and of the second
        (BMLR, {"precision": "bf16-mixed"}, 1),
        (OGMGE, {"gradient_clip_val": 0.5}, 2),  # it follows epochs, and its sums outlive the graph
    ],
)
def test_a_run_of_graphs_is_the_eager_one(tmp_path, graphs, method, options, captures):
    eager = run(tmp_path, "off", method(), **options)
    assert graphs.captures == 0
    replayed = run(tmp_path, "auto", method(), **options)
    assert graphs.captures == captures
    assert_equal_runs(eager, replayed)


#: A sample of the seventh batch of the first epoch, which is a replay.
LATE = 24


def test_a_loss_that_is_not_finite_in_a_replay_stops_at_the_step_of_the_eager_run(tmp_path, graphs):
    messages = []
    for graph in ("off", "auto"):
        with pytest.raises(NonFiniteLossError) as caught:
            run(tmp_path, graph, BMLR(), Toy(90, poison=LATE))
        messages.append(str(caught.value))
    assert graphs.captures == 1
    assert messages[0] == messages[1]
    assert "step 6" in messages[0]
    assert "The inputs of audio are not finite" in messages[0]


def test_a_replayed_step_is_skipped_as_an_eager_one(tmp_path, graphs):
    results = [run(tmp_path, graph, BMLR(), Toy(90, poison=LATE), on_nonfinite="skip") for graph in ("off", "auto")]
    assert_equal_runs(*results)
    assert results[0].content["nonfinite"] == results[1].content["nonfinite"]
    assert read_metrics(results[1].directory)["skipped_steps"].tolist() == [1, 1]


class Stop(Exception):
    pass


def test_an_interrupted_run_of_graphs_ends_as_the_eager_one(tmp_path, graphs, monkeypatch):
    whole, calls = run(tmp_path, "off", BMLR()), []
    call = CapturedStep.__call__

    def stopping(step, batch, **given):
        calls.append(batch)
        if len(calls) == 19:  # the seventh of the second epoch
            raise Stop
        return call(step, batch, **given)

    monkeypatch.setattr(CapturedStep, "__call__", stopping)
    options = dataclasses.replace(OPTIONS, graph="auto", checkpoint_every=1)
    given = (DATA, BMLR(), None, OptimizerOptions(lr=1e-2))
    with pytest.raises(Stop):
        train(*given, options, run=tmp_path / "cut")
    resumed = train(DATA, BMLR(), None, given[3], options, run=tmp_path / "cut", resume=True)
    assert_equal_runs(whole, resumed)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compile": True}, "--trainer.compile makes other kernels of the encoders"),
        ({"precision": "64-true"}, "graphs are for the precisions 32-true and bf16-mixed, and this one is 64-true"),
        ({"modality_dropout": 0.2}, "--trainer.modality_dropout gives every step other numbers of samples"),
    ],
)
def test_what_cannot_be_a_graph_runs_eagerly_and_says_so_once(tmp_path, graphs, caplog, monkeypatch, options, reason):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    with caplog.at_level(logging.WARNING, "bmlr.training"):
        result = run(tmp_path, "auto", epochs=1, **options)
    assert [r.message for r in caplog.records if "graph" in r.message] == [
        f"--trainer.graph auto: the steps run without graphs, since {reason}."
    ]
    assert graphs.captures == 0
    assert result.content["epochs"] == 1


def test_a_run_on_the_cpu_says_that_it_has_no_graph(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "bmlr.training"):
        run(tmp_path, "auto", epochs=1)
    assert "since graphs are for CUDA devices, and this run is on cpu." in caplog.text


class Reading(Joint):
    """Reads its loss on the host in every step."""

    graph_reason = ""

    def losses(self, output, targets):
        losses = super().losses(output, targets)
        self.last = float(losses.terms["fused"].detach())
        return losses


def test_a_step_that_the_device_cannot_capture_is_an_error(tmp_path, graphs):
    with pytest.raises(RunError, match="A step of Reading cannot be captured as a graph with this model: .*Leave out"):
        run(tmp_path, "auto", Reading())


class Counting(Joint):
    """Counts its steps in Python, and weights its loss by their number."""

    graph_reason = ""
    count = 0

    def losses(self, output, targets):
        self.count += 1
        return Losses({"fused": super().losses(output, targets).total * self.count})


def test_a_step_that_follows_a_number_of_the_host_ends_without_a_graph_and_says_so(tmp_path, graphs, caplog):
    eager = run(tmp_path, "off", Counting(), epochs=1)
    with caplog.at_level(logging.WARNING, "bmlr.training"):
        assert_equal_runs(eager, run(tmp_path, "auto", Counting(), epochs=1))
    assert graphs.captures == 4
    assert caplog.text.count("Further steps run without a graph: Counting changes count from step to step") == 1


class Undeclared(Joint):
    """Says nothing about graphs."""


def test_a_method_of_the_users_is_captured_where_it_says_so(tmp_path, graphs, caplog):
    with caplog.at_level(logging.WARNING, "bmlr.training"):
        run(tmp_path, "auto", Undeclared(), epochs=1)
    assert "since Undeclared does not say by `graph_reason` that one can hold its step." in caplog.text
    assert graphs.captures == 0


def test_a_run_too_short_for_a_graph_says_so(tmp_path, graphs, caplog):
    with caplog.at_level(logging.WARNING, "bmlr.training"):
        run(tmp_path, "auto", data=Toy(24), epochs=1)
    assert "no step was a graph. It takes more than three batches of one size" in caplog.text
