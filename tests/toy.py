"""A tiny data set of vectors and images, for tests of training."""

import time
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bmlr import Batch, MultimodalClassifier, Output
from bmlr.data import ArraySplit, Modality, MultimodalData, SplitName, TrainingDefaults
from bmlr.methods import Joint, Losses, Prediction


class Toy(MultimodalData):
    """Gaussian classes, seen weakly in an image and well in a vector.

    Args:
        samples: Samples per split.
        protocol: clean or paper.
        poison: Training sample whose input is NaN.
    """

    name = "toy"
    defaults = TrainingDefaults(epochs=3, batch_size=16, lr=1e-2, width=2)
    classes: tuple[str, ...] = ("zero", "one", "two")
    modalities = {"audio": Modality("vector", (4,)), "image": Modality("image", (1, 8, 8))}

    def __init__(self, samples: int = 40, protocol: str = "clean", poison: int | None = None) -> None:
        self.samples, self.protocol, self.poison = samples, protocol, poison
        self.reads: list[str] = []

    def prepare(self) -> None:
        pass

    def split(self, name: SplitName) -> ArraySplit:
        self.reads.append(name)
        rng = np.random.default_rng({"train": 0, "val": 1, "test": 2}[name])
        targets = rng.integers(0, 3, self.samples)
        audio = rng.normal(size=(self.samples, 4)) + 2 * targets[:, None]
        image = rng.normal(size=(self.samples, 1, 8, 8)) + 0.3 * targets[:, None, None, None]
        if name == "train" and self.poison is not None:
            audio[self.poison] = np.nan
        return ArraySplit({"audio": audio, "image": image}, targets)

    def load_files(
        self, files: Mapping[str, str | Path], modalities: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        for name in modalities or self.modalities:
            if name not in files:
                raise ValueError(f"`files` should hold a file for '{name}'. Found {sorted(files)}.")
        return {
            name: torch.from_numpy(np.load(Path(path), allow_pickle=False)).float()[None]
            for name, path in files.items()
        }


class WaitingJoint(Joint):
    """Joint training that tells of its first step and prediction, and waits at each for a file.

    Args:
        folder: Folder of the files ``go-step`` and ``go-prediction``.
    """

    def __init__(self, folder: str = ".") -> None:
        super().__init__()
        self.folder = folder
        self._told: set[str] = set()

    def compute_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        self._tell("step")
        return super().compute_losses(model, batch)

    def predict(self, output: Output) -> Prediction:
        self._tell("prediction")
        return super().predict(output)

    def _tell(self, event: str) -> None:
        if event in self._told:
            return
        self._told.add(event)
        print(event, flush=True)
        deadline = time.monotonic() + 60
        while not Path(self.folder, f"go-{event}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
