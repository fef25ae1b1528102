"""Every method's step as a graph, recorded on the CPU: the numbers of the eager steps, bit for bit.

What a method does by Python within losses and backward happens once, at the capture. A method that counts, draws or
decides there fails here, or names why no graph can hold its step (:attr:`bmlr.Method.graph_reason`).
"""

import re
from pathlib import Path

import pytest
import torch
from subjects import METHODS, SUBJECTS, base, compute, kinds, make_loop, method_class
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bmlr.runs import RunError
from bmlr.training._graph import CapturedStep, CudaGraphs
from method_loop import MethodLoop, assert_same_state
from recorded_graph import RecordedGraphs

EPOCHS = 2
TRAINING = [subject for subject in SUBJECTS if method_class(subject).trains]
CAPTURED = [subject for subject in TRAINING if not method_class(subject).graph_reason]


class GraphLoop(MethodLoop):
    """The loop, with losses and gradients of a graph where one fits."""

    def step(self, batch):
        self.optimizer.zero_grad()
        losses = self.captured_step(batch, scale=1.0, is_first=True)
        self.losses.append({**losses.terms, **losses.logs})
        self.method.adjust_gradients(self.model)
        self.optimizer.step()


def run(subject, *, is_captured, device="cpu"):
    """A run of seven batches per pass."""
    loop = make_loop(subject, dtype=torch.float32, samples=42, batch_norm=True, epochs=EPOCHS)
    loop.__class__ = GraphLoop
    loop.losses, loop.batch_size = [], 6
    loop.backend = RecordedGraphs() if device == "cpu" else CudaGraphs(torch.device(device))
    loop.model.to(device)
    loop.method.to(device)
    loop.train = loop.train.to(device)
    loop.captured_step = CapturedStep(loop.model, loop.method, loop.backend)
    if not is_captured:
        loop.captured_step._find = lambda *_: None
    torch.manual_seed(0)
    for epoch in range(EPOCHS):
        loop.captured_step.begin_epoch()
        loop.run([epoch])
    return loop


@pytest.mark.parametrize("subject", CAPTURED)
def test_steps_of_graphs_are_the_eager_ones(subject):
    eager, replayed = run(subject, is_captured=False), run(subject, is_captured=True)
    assert_same_state(replayed.state(), eager.state())
    assert replayed.losses == eager.losses
    # A graph that fits one step alone is captured for every one.
    assert replayed.captured_step.replays > replayed.backend.captures > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("subject", CAPTURED)
def test_on_a_gpu_steps_of_graphs_are_the_eager_ones(subject):
    eager, replayed = (run(subject, is_captured=is_captured, device="cuda") for is_captured in (False, True))
    assert replayed.captured_step.replays > 0
    for first, second in zip(eager.losses, replayed.losses, strict=True):
        torch.testing.assert_close(second, first)  # kernels that add by atomics have no fixed order
    torch.testing.assert_close(replayed.model.state_dict(), eager.model.state_dict())


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).graph_reason])
def test_a_method_that_names_a_reason_cannot_be_captured(name):
    def fails(subject):
        try:
            replayed = run(subject, is_captured=True)
        except RunError:
            return True
        return replayed.captured_step.replays == replayed.backend.captures

    assert any(fails(subject) for subject in TRAINING if base(subject) == name)


class OfTheHost(TorchDispatchMode):
    """Names of the operations that copy from the host or draw on it: a graph would repeat what they read once."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), result))
        copies = "copy" in str(func) and any(x.is_meta for x in made) and not all(x.is_meta for x in tensors)
        if copies or any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize("subject", CAPTURED)
def test_a_captured_step_copies_nothing_from_the_host(subject):
    """On the CPU host and device are one; here the device has no numbers. The first step may move what was restored."""
    for fresh, batch in kinds(make_loop(subject, dtype=torch.float32)):
        fresh.model.to("meta")
        fresh.method.to("meta")
        moved = batch.to("meta")
        compute(fresh, moved)
        with OfTheHost() as host:
            fresh.method.discard_losses()
            compute(fresh, moved)
        assert not host.found


def test_the_page_names_the_methods_without_a_graph_and_why():
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    section = page.partition("\n## A graph\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| (\w+(?:, \w+)*) \| ([^|]+) \|$", section, re.MULTILINE))
    listed = {name: reason for names, reason in told.items() for name in names.split(", ") if name != "method"}
    assert listed == {name: reason for name in METHODS if (reason := method_class(name).graph_reason)}
