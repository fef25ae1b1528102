"""Tiny data sets of labels and of numbers, for tests of tasks."""

import numpy as np

from bmlr.data import ArraySplit, Modality, SplitName
from bmlr.tasks import MultiLabel, Regression, Sentiment, Task
from toy import Toy


class ToyLabels(Toy):
    """Three labels, of which each vector shows one."""

    name = "toy-labels"
    classes: tuple[str, ...] = ("red", "green", "blue")
    modalities = {"audio": Modality("vector", (4,)), "text": Modality("vector", (5,))}

    @property
    def task(self) -> Task:
        return MultiLabel(3)

    def split(self, name: SplitName) -> ArraySplit:
        rng = np.random.default_rng({"train": 0, "val": 1, "test": 2}[name])
        labels = rng.integers(0, 2, (self.samples, 3))
        audio = rng.normal(size=(self.samples, 4)) + 2 * labels[:, :1]
        text = rng.normal(size=(self.samples, 5)) + labels[:, 1:2]
        return ArraySplit({"audio": audio, "text": text}, labels)


class ToyNumbers(ToyLabels):
    """A number, seen well in a vector and weakly in another."""

    name = "toy-numbers"
    classes = ()

    @property
    def task(self) -> Task:
        return Regression()

    def split(self, name: SplitName) -> ArraySplit:
        rng = np.random.default_rng({"train": 0, "val": 1, "test": 2}[name])
        numbers = rng.normal(size=self.samples)
        audio = rng.normal(size=(self.samples, 4)) + 2 * numbers[:, None]
        text = rng.normal(size=(self.samples, 5)) + 0.5 * numbers[:, None]
        return ArraySplit({"audio": audio, "text": text}, numbers)


class ToySentiment(ToyNumbers):
    """The same as sentiment."""

    name = "toy-sentiment"

    @property
    def task(self) -> Task:
        return Sentiment()
