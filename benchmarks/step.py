"""What a training step costs under each method, relative to the plain joint step.

Run ``python benchmarks/step.py``: two ResNet-18 (a spectrogram and frames), Adam, and every call of the method
interface that a step makes. Methods take turns in one process, in a new order each round, and each step is divided by
the joint step of its round, so that a machine that drifts slows both. A second table shows how label reshaping grows
with the number of classes. Peak memory is measured by ``memory.py``.

A method whose epoch has several kinds of passes has a row for each; "steps" is the number of steps of an epoch in
units of the joint epoch's.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

import bmlr
from bmlr.methods import EpochContext, EpochPlan, StartingMethod
from bmlr.parameters import optimizer_like

BASELINE = "Joint"
#: An epoch in which every method acts: past the warm-ups, before the ends of modulation.
EPOCH, MAX_EPOCHS = 10, 70


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, and on what."""

    device: str
    batch_size: int
    width: int
    spectrogram: tuple[int, int]
    frames: tuple[int, int, int]
    num_classes: int
    clock: str = "wall"
    dtype: torch.dtype = torch.float32

    def make_model(self) -> bmlr.MultimodalClassifier:
        """Two ResNet-18 and a concatenation."""
        encoders = {
            "audio": bmlr.encoders.resnet18(in_channels=1, width=self.width),
            "video": bmlr.encoders.resnet18(in_channels=3, width=self.width),
        }
        return bmlr.MultimodalClassifier(encoders, self.num_classes).to(self.device, dtype=self.dtype)

    def make_batch(self) -> bmlr.Batch:
        """Random inputs; the time of a step does not depend on what they show."""
        number, height, width = self.frames
        inputs = {
            "audio": torch.randn(self.batch_size, 1, *self.spectrogram),
            "video": torch.randn(self.batch_size, number, 3, height, width),
        }
        targets = torch.randint(self.num_classes, (self.batch_size,))
        return bmlr.Batch(inputs, targets, indices=torch.arange(self.batch_size)).to(self.device, dtype=self.dtype)


class Subject:
    """A method with a model and an optimiser of its own, ready to make steps."""

    def __init__(
        self, name: str, setting: Setting, batch: bmlr.Batch, parameters: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.device = setting.device
        self.now = time.process_time if setting.clock == "cpu" else time.perf_counter
        self.model = setting.make_model().train()
        self.method = bmlr.methods.create(name, **(parameters or {}))
        if (parameter := self.method.conformance.modality_parameter) and getattr(self.method, parameter) is None:
            setattr(self.method, parameter, self.model.modalities[0])
        self.method.setup(self.model)
        self._start()
        self.method.train()
        trained = [p for p in (*self.model.parameters(), *self.method.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=5e-5)
        plan = self._plan(batch)
        self.batches = {each.tag: dataclasses.replace(batch, tag=each.tag) for each in plan.passes}
        size = len(batch)
        self.steps_per_epoch = sum(size if each.indices is None else len(each.indices) for each in plan.passes) / size

    def _start(self) -> None:
        """Hand over the runs that the method starts from, untrained: a step takes as long."""
        trained: dict[str, tuple[bmlr.MultimodalClassifier, bmlr.Method]] = {}
        for name, single in self.method.required_runs(self.model.modalities).items():
            network = copy.deepcopy(self.model)
            single.setup(network)
            trained[name] = network, single
        if trained and isinstance(self.method, StartingMethod):
            self.method.start_from(trained, self.model)

    def _plan(self, batch: bmlr.Batch) -> EpochPlan:
        def batches(_: int = 0) -> Iterator[bmlr.Batch]:
            yield batch

        def make_optimizer(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
            return optimizer_like(self.optimizer, parameters)

        context = EpochContext(EPOCH, MAX_EPOCHS, self.model, len(batch), batches, batches, 0, batches, make_optimizer)
        return self.method.start_epoch(context)

    def take(self, batch: bmlr.Batch) -> None:
        """Make one step."""
        self.optimizer.zero_grad()
        losses = self.method.compute_losses(self.model, batch)
        self.method.backward(losses, self.model)
        self.method.adjust_gradients(self.model)
        self.optimizer.step()

    def step(self, tag: str) -> float:
        """Make one step and return its seconds."""
        wait(self.device)
        start = self.now()
        self.take(self.batches[tag])
        wait(self.device)
        seconds = self.now() - start
        self.optimizer.zero_grad()  # between turns a method holds no gradients
        return seconds


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure_times(subjects: Sequence[Subject], repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every kind of step, one entry per round."""
    kinds = [(subject, tag) for subject in subjects for tag in subject.batches]
    for subject, tag in kinds:
        subject.step(tag)  # allocators and the optimiser's state
    seconds: dict[tuple[str, str], list[float]] = {(subject.name, tag): [] for subject, tag in kinds}
    order = random.Random(0)  # noqa: S311  (an order of turns, no secret)
    for _ in range(repeats):
        for subject, tag in order.sample(kinds, len(kinds)):
            seconds[subject.name, tag].append(subject.step(tag))
    return seconds


def time_calls(function: Callable[[], object], device: str, *, seconds: float = 0.5) -> float:
    """Median seconds of a call."""
    function()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def scaling_rows(setting: Setting) -> Iterator[list[str]]:
    """Time of ``reshape_labels`` for two modalities over the number of classes."""
    previous = None
    for num_classes in (10, 100, 1_000, 10_000, 100_000):
        shape = (setting.batch_size, num_classes)
        logits = {name: torch.randn(shape, device=setting.device) for name in ("audio", "video")}
        targets = torch.randint(num_classes, shape[:1], device=setting.device)

        def reshape(logits: dict[str, torch.Tensor] = logits, targets: torch.Tensor = targets) -> bmlr.ReshapedLabels:
            return bmlr.reshape_labels(logits, targets, alpha=1.0, beta=0.1)

        seconds = time_calls(reshape, setting.device)
        per_element = seconds / (2 * setting.batch_size * num_classes)
        growth = "" if previous is None else f"{seconds / previous:.1f}"
        yield [f"{num_classes:,}", f"{seconds * 1e6:,.0f}", f"{per_element * 1e9:.2f}", growth]
        previous = seconds


def step_rows(subjects: Sequence[Subject], seconds: dict[tuple[str, str], list[float]]) -> Iterator[list[str]]:
    """A row per method and kind of pass."""
    baseline = seconds[BASELINE, ""]
    for subject in subjects:
        for tag in subject.batches:
            times = seconds[subject.name, tag]
            ratios = [t / b for t, b in zip(times, baseline, strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
            row = [subject.name + (f" ({tag})" if tag else ""), f"{subject.steps_per_epoch:.3g}"]
            row += [f"{statistics.median(times) * 1e3:,.0f}", f"{median:.3f}", f"{low:.3f}–{high:.3f}"]
            yield row


def table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the options of a setting, and the methods."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    trained = [name for name in bmlr.methods.available() if bmlr.methods.get(name).trains]
    parser.add_argument("--methods", nargs="+", default=trained, metavar="NAME")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage of the encoders")
    parser.add_argument("--spectrogram", nargs=2, type=int, default=(48, 48), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", nargs=3, type=int, default=(1, 48, 48), metavar=("NUMBER", "HEIGHT", "WIDTH"))
    parser.add_argument("--num-classes", type=int, default=6)


def make_setting(options: argparse.Namespace, clock: str = "wall") -> Setting:
    """The setting of these options."""
    return Setting(
        device=options.device,
        batch_size=options.batch_size,
        width=options.width,
        spectrogram=tuple(options.spectrogram),
        frames=tuple(options.frames),
        num_classes=options.num_classes,
        clock=clock,
    )


def chosen_methods(options: argparse.Namespace) -> list[str]:
    """Names of the methods that make steps, the baseline first."""
    chosen = [method.__name__ for method in map(bmlr.methods.get, options.methods) if method.trains]
    return [BASELINE, *(name for name in chosen if name != BASELINE)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_setting(parser)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each makes one step of every kind")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU; its own choice if left out")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the processor time of all threads, which other programs on the machine do not change",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the two tables."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = make_setting(options, options.clock)
    names = chosen_methods(options)
    batch = setting.make_batch()
    subjects = [Subject(name, setting, batch) for name in names]
    seconds = measure_times(subjects, options.repeats)

    print(f"Torch {torch.__version__}, {setting.device}, {torch.get_num_threads()} threads, {setting}\n")
    head = ["method", "steps", "step, ms", f"step / {BASELINE}", "quartiles"]
    print(table(head, step_rows(subjects, seconds)))
    print(f"\n`reshape_labels`, batch of {setting.batch_size}, two modalities\n")
    print(table(["classes", "µs", "ns per logit", "growth"], scaling_rows(setting)))


if __name__ == "__main__":
    main()
