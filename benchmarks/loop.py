"""What an epoch of ``bmlr train`` costs beyond its steps.

Run ``python benchmarks/loop.py``. Three loops train the same model on the same batches, in turn, in one process:

* bare: forward, losses, backward and optimiser step of the method, and after every epoch a validation pass;
* lightning: the same calls in a plain LightningModule, without logging, checkpoints or checks;
* bmlr train: a whole run, with its checks of every loss and gradient, metrics, weights, checkpoints and exact resume.

An epoch lasts from its start to that of the next, in a run of several: starting and ending a run does not count.
A step lasts from the losses of a batch to those of the next; what an epoch takes beyond its steps is its end: its
validation, and for ``bmlr train`` metrics and checkpoint. Ratios are to the bare loop of the same round.

The optimiser is the same in all three, with its fused kernel: what is compared is the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import lightning
import numpy as np
import torch

import bmlr
from bmlr.batch import Batch
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions, build_model
from bmlr.data import ArraySplit, Modality, MultimodalData, SplitName
from bmlr.methods import EpochContext
from bmlr.training import train
from bmlr.training.loader import RequestLoader, ordered_requests, planned_requests

LOOPS = ("bare", "lightning", "bmlr train")


class RandomMedia(MultimodalData):
    """Samples of noise, in memory: loading them costs as little as it can.

    Args:
        batches: Batches of the training split; the validation split has an eighth.
        batch_size: Samples of a batch.
        spectrogram: Height and width; None for vectors in place of spectrograms and frames.
        frames: Number, height and width.
    """

    name: ClassVar[str] = "random-media"

    def __init__(
        self, batches: int, batch_size: int, spectrogram: tuple[int, int] | None, frames: tuple[int, int, int]
    ) -> None:
        self.protocol, self.classes = "clean", tuple("abcdef")
        self.batches, self.batch_size = batches, batch_size
        self.spectrogram, self.frames = spectrogram if spectrogram is None else tuple(spectrogram), tuple(frames)
        if spectrogram is None:
            self.modalities = {"audio": Modality("vector", (40,)), "video": Modality("vector", (64,))}
        else:
            number, height, width = self.frames
            self.modalities = {
                "audio": Modality("spectrogram", (1, *spectrogram)),
                "video": Modality("frames", (number, 3, height, width)),
            }
        self._splits: dict[SplitName, ArraySplit] = {}

    def prepare(self) -> None:
        """Draw the samples."""
        if self._splits:
            return
        rng = np.random.default_rng(0)
        counts: dict[SplitName, int] = {"train": self.batches, "val": -(-self.batches // 8), "test": 1}
        for split, count in counts.items():
            samples = count * self.batch_size
            inputs = {
                name: rng.standard_normal((samples, *modality.shape), dtype=np.float32)
                for name, modality in self.modalities.items()
            }
            self._splits[split] = ArraySplit(inputs, rng.integers(len(self.classes), size=samples))

    def split(self, name: SplitName) -> ArraySplit:
        """One split."""
        return self._splits[name]


class Setting:
    """What is trained, and how."""

    def __init__(self, options: argparse.Namespace) -> None:
        # A run's file names its data set's class, which has to be found again: not as one of `__main__`.
        made = importlib.import_module("loop").RandomMedia
        spectrogram = tuple(options.spectrogram) if options.model == "resnet18" else None
        self.data: MultimodalData = made(options.batches, options.batch_size, spectrogram, tuple(options.frames))
        self.data.prepare()
        self.batch_size: int = options.batch_size
        self.method: str = options.method
        # A perceptron is four times as wide as its option says.
        self.model = ModelOptions(width=options.width or (8 if options.model == "resnet18" else 4))
        self.optimizer = OptimizerOptions(lr=1e-4)
        self.device = torch.device("cuda" if options.accelerator == "gpu" else "cpu")
        self.accelerator: str = options.accelerator

    def make(self) -> tuple[bmlr.MultimodalClassifier, bmlr.Method]:
        """Model and method with weights drawn anew."""
        torch.manual_seed(0)
        model = build_model(self.data, self.model).to(self.device)
        method = bmlr.methods.create(self.method)
        method.setup(model)
        return model, method

    def train_loader(self, epoch: int) -> RequestLoader:
        """The batches of an epoch of one pass."""
        split = self.data.split("train")
        requests = planned_requests(bmlr.methods.EpochPlan(), len(split), self.batch_size, seed=0, epoch=epoch)
        return RequestLoader(split, requests)

    def val_loader(self) -> RequestLoader:
        """The validation split in order."""
        split = self.data.split("val")
        return RequestLoader(split, ordered_requests(len(split), self.batch_size))

    def context(self, epoch: int, epochs: int, model: bmlr.MultimodalClassifier) -> EpochContext:
        """Model and epoch for the method."""
        return EpochContext(epoch, epochs, model)


def train_bare(setting: Setting, epochs: int) -> None:
    """The loop that a paper's code has."""
    model, method = setting.make()
    optimizer = setting.optimizer.optimizer(model, method.parameters(), fused=True)
    for epoch in range(epochs):
        model.train()
        method.train()
        method.start_epoch(setting.context(epoch, epochs, model))
        for batch in setting.train_loader(epoch):
            optimizer.zero_grad()
            losses = method.compute_losses(model, batch.to(setting.device))
            method.backward(losses, model)
            method.adjust_gradients(model)
            optimizer.step()
        model.eval()
        method.eval()
        correct = torch.zeros((), device=setting.device)
        with torch.no_grad():
            for batch in setting.val_loader():
                moved = batch.to(setting.device)
                prediction = method.predict(model(moved.inputs))
                for logits in (prediction.logits, *prediction.unimodal_logits.values()):
                    correct += (logits.argmax(1) == moved.targets).sum()
        method.end_epoch(setting.context(epoch, epochs, model))
        float(correct)


class PlainModule(lightning.LightningModule):
    """The same calls under Lightning."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.model, self.method = setting.make()
        self.correct = torch.zeros((), device=setting.device)

    def configure_optimizers(self) -> Any:
        """Adam."""
        return self.setting.optimizer.optimizer(self.model, self.method.parameters(), fused=True)

    def train_dataloader(self) -> RequestLoader:
        """The batches of the epoch."""
        return self.setting.train_loader(self.current_epoch)

    def val_dataloader(self) -> RequestLoader:
        """The validation split."""
        return self.setting.val_loader()

    def on_train_epoch_start(self) -> None:
        """Start the method's epoch."""
        self.method.start_epoch(self.setting.context(self.current_epoch, self.trainer.max_epochs or 1, self.model))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Losses of a batch."""
        self.losses = self.method.compute_losses(self.model, batch)
        return self.losses.total.detach().requires_grad_()

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the method."""
        self.method.backward(self.losses, self.model)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Change of the gradients by the method."""
        self.method.adjust_gradients(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Right answers of a batch."""
        prediction = self.method.predict(self.model(batch.inputs))
        for logits in (prediction.logits, *prediction.unimodal_logits.values()):
            self.correct += (logits.argmax(1) == batch.targets).sum()

    def on_train_epoch_end(self) -> None:
        """End the method's epoch."""
        self.method.end_epoch(self.setting.context(self.current_epoch, self.trainer.max_epochs or 1, self.model))


def train_lightning(setting: Setting, epochs: int) -> None:
    """Lightning without anything of this library around it."""
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator=setting.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(PlainModule(setting))


def train_run(setting: Setting, epochs: int) -> None:
    """A run as ``bmlr train`` makes it."""
    with tempfile.TemporaryDirectory() as folder:
        train(
            setting.data, bmlr.methods.create(setting.method), setting.model, setting.optimizer,
            TrainerOptions(epochs=epochs, batch_size=setting.batch_size, accelerator=setting.accelerator),
            runs=Path(folder),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a loop, the medians of a run.

    Attributes:
        epoch: An epoch.
        step: A step of it.
        end: An epoch without its steps.
    """

    epoch: float
    step: float
    end: float


def measure(loop: Callable[[Setting, int], None], setting: Setting, epochs: int, clock: str) -> Times:
    """Times of a run, without its beginning and end."""
    stamps: list[list[float]] = []  # by epoch: its start, and those of its losses
    now = time.process_time if clock == "cpu" else time.perf_counter

    @contextlib.contextmanager
    def watched(name: str, stamp: Callable[[], None]) -> Iterator[None]:
        call = getattr(bmlr.Method, name)

        def stamped(*arguments: Any) -> Any:
            stamp()
            return call(*arguments)

        with patch.object(bmlr.Method, name, stamped):
            yield

    def start() -> None:
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        stamps.append([now()])

    with watched("start_epoch", start), watched("compute_losses", lambda: stamps[-1].append(now())):
        loop(setting, 1 + epochs)
    epoch = statistics.median(after[0] - before[0] for before, after in itertools.pairwise(stamps))
    steps = [after - before for row in stamps for before, after in itertools.pairwise(row[1:])]
    step = statistics.median(steps) if steps else 0.0
    return Times(epoch, step, epoch - (len(steps) // len(stamps) + 1) * step)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--method", default="BMLR")
    parser.add_argument("--model", choices=("resnet18", "mlp"), default="resnet18", help="both encoders")
    parser.add_argument("--width", type=int, help="option of the model; 8, for perceptrons 4, which makes 16 units")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="training batches of an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="epochs that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spectrogram", nargs=2, type=int, default=(32, 47), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", nargs=3, type=int, default=(1, 28, 28), metavar=("NUMBER", "HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the processor time of all threads, which other programs on the machine do not change",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(options)
    loops = dict(zip(LOOPS, (train_bare, train_lightning, train_run), strict=True))
    times: dict[str, list[Times]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(setting, 1)  # imports, allocators and caches
    for _ in range(options.rounds):
        for name, loop in loops.items():
            times[name].append(measure(loop, setting, options.epochs, options.clock))

    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"\nTorch {torch.__version__}, {device}, {vars(options)}\n")
    print("| loop | epoch / bare | range | step / bare | step, ms | above bare, ms | end of epoch, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, values in times.items():
        pairs = list(zip(values, times["bare"], strict=True))
        ratios = [mine.epoch / bare.epoch for mine, bare in pairs]
        columns = [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}–{max(ratios):.3f}"]
        columns.append(f"{statistics.median(mine.step / bare.step for mine, bare in pairs):.3f}")
        seconds = (
            [mine.step for mine in values],
            [mine.step - bare.step for mine, bare in pairs],
            [mine.end for mine in values],
        )
        columns += [f"{statistics.median(value) * 1e3:.2f}" for value in seconds]
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
