"""Whether several small runs at once on one device finish sooner than one after another.

Run ``python benchmarks/concurrency.py --device cuda``. Trainings of the same small model, each with a seed of its own,
make the same number of steps in four ways:

* one after another, in one process;
* processes: one process each, started before the clock and released together;
* threads: one thread each of one process, on a GPU with a stream each;
* stacked: one training of all models at once, their parameters stacked by ``torch.func``, for joint training only.

Printed is the throughput of each, all steps by seconds, relative to one after another in the same round. A wall clock:
what counts is what the device gets done while nobody else uses it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.func import functional_call, stack_module_state, vmap

import bmlr
from bmlr.functional import soft_cross_entropy

CLASSES = 6


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained."""

    device: str
    method: str
    model: str
    width: int
    batch_size: int
    steps: int

    def make_model(self, seed: int) -> bmlr.MultimodalClassifier:
        """A model with weights of its seed."""
        torch.manual_seed(seed)
        encoders: dict[str, torch.nn.Module]
        if self.model == "mlp":
            encoders = {name: bmlr.encoders.MLP(size, 4 * self.width) for name, size in (("audio", 40), ("video", 64))}
        else:
            encoders = {
                name: bmlr.encoders.resnet18(in_channels=channels, width=self.width)
                for name, channels in (("audio", 1), ("video", 3))
            }
        return bmlr.MultimodalClassifier(encoders, CLASSES).to(self.device)

    def make_batch(self) -> bmlr.Batch:
        """Random inputs."""
        shapes = (
            {"audio": (40,), "video": (64,)} if self.model == "mlp" else {"audio": (1, 32, 47), "video": (3, 28, 28)}
        )
        inputs = {name: torch.randn(self.batch_size, *shape) for name, shape in shapes.items()}
        return bmlr.Batch(inputs, torch.arange(self.batch_size) % CLASSES).to(self.device)


class Training:
    """One training, ready to make steps."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.model = setting.make_model(seed).train()
        self.method = bmlr.methods.create(setting.method)
        self.method.setup(self.model)
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *self.method.parameters()], lr=1e-4, fused=True)
        self.batch, self.steps = setting.make_batch(), setting.steps
        self.method.start_epoch(bmlr.methods.EpochContext(0, 1, self.model))

    def run(self, steps: int | None = None) -> None:
        """Make the steps."""
        for _ in range(self.steps if steps is None else steps):
            self.optimizer.zero_grad()
            losses = self.method.compute_losses(self.model, self.batch)
            self.method.backward(losses, self.model)
            self.method.adjust_gradients(self.model)
            self.optimizer.step()


class Stacked:
    """Joint training of several models at once, as one model whose parameters have a further dimension."""

    def __init__(self, setting: Setting, runs: int) -> None:
        models = [setting.make_model(seed).train() for seed in range(runs)]
        self.parameters, self.buffers = stack_module_state(models)
        self.model, self.batch, self.steps = models[0], setting.make_batch(), setting.steps
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=1e-4, fused=True)

    def _loss(self, parameters: Any, buffers: Any) -> torch.Tensor:
        output = functional_call(self.model, (parameters, buffers), (self.batch.inputs,))
        return soft_cross_entropy(output.logits, self.targets).mean()

    def run(self, steps: int | None = None) -> None:
        """Make the steps."""
        self.targets = torch.nn.functional.one_hot(self.batch.targets, CLASSES).float()
        for _ in range(self.steps if steps is None else steps):
            self.optimizer.zero_grad()
            vmap(self._loss, randomness="different")(self.parameters, self.buffers).sum().backward()
            self.optimizer.step()


def wait(setting: Setting) -> None:
    """Wait until the device has finished."""
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize(setting.device)


def one_after_another(setting: Setting, runs: int) -> float:
    """Seconds of all, in one process."""
    trainings = [Training(setting, seed) for seed in range(runs)]

    def run() -> None:
        for training in trainings:
            training.run()

    return _timed(setting, trainings, run)


def threads(setting: Setting, runs: int) -> float:
    """Seconds of a thread each."""
    trainings = [Training(setting, seed) for seed in range(runs)]
    on_gpu = setting.device.startswith("cuda")

    def work(training: Training) -> None:
        with torch.cuda.stream(torch.cuda.Stream(setting.device)) if on_gpu else contextlib.nullcontext():
            training.run()

    def run() -> None:
        workers = [threading.Thread(target=work, args=(training,)) for training in trainings]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return _timed(setting, trainings, run)


def stacked(setting: Setting, runs: int) -> float:
    """Seconds of all models as one."""
    training = Stacked(setting, runs)
    return _timed(setting, [training], training.run)


def _timed(setting: Setting, trainings: Sequence[Training | Stacked], run: Callable[[], object]) -> float:
    for training in trainings:
        training.run(2)  # allocators, kernels and the optimiser's state
    wait(setting)
    start = time.perf_counter()
    run()
    wait(setting)
    return time.perf_counter() - start


def processes(setting: Setting, runs: int) -> float:
    """Seconds of a process each, from their release to the end of the last."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(runs + 1)
    count = torch.get_num_threads()
    workers = [context.Process(target=_work, args=(setting, seed, count, barrier), daemon=True) for seed in range(runs)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return seconds


def _work(setting: Setting, seed: int, count: int, barrier: Any) -> None:
    torch.set_num_threads(count)
    training = Training(setting, seed)
    training.run(2)
    wait(setting)
    barrier.wait()
    training.run()
    wait(setting)
    barrier.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--method", default="Joint")
    parser.add_argument("--model", choices=("resnet18", "mlp"), default="resnet18", help="both encoders")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = Setting(
        options.device, options.method, options.model, options.width, options.batch_size, options.steps
    )  # fmt: skip
    ways = {"one after another": one_after_another, "processes": processes, "threads": threads}
    if options.method == "Joint":
        ways["stacked"] = stacked
    print(f"Torch {torch.__version__}, {setting}\n")
    print("| runs | way | throughput / one after another | range |\n| ---: | --- | ---: | ---: |")
    for runs in options.runs:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                seconds[name].append(way(setting, runs))
        for name, values in seconds.items():
            gains = [one / mine for one, mine in zip(seconds["one after another"], values, strict=True)]
            print(
                f"| {runs} | {name} | {statistics.median(gains):.2f} | {min(gains):.2f}–{max(gains):.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
