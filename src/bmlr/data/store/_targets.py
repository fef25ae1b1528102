"""Targets as a source writes them: one class, several labels, or a number."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bmlr._checks import nearest_name
from bmlr.tasks import Multiclass, MultiLabel, Regression, Task

TaskName = Literal["multiclass", "multilabel", "regression"]

SEPARATOR = "|"  # between the labels of a sample; alone it says that the sample has none of them
_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class TargetForm:
    """Meaning of the texts that are targets.

    Attributes:
        task: Name of the task.
        classes: Names of the classes or labels, in the order of the targets; none for numbers.

    Example:
        >>> TargetForm("multilabel", ("cat", "dog")).array(["dog", "cat|dog", "|"]).tolist()
        [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """

    task: TaskName
    classes: tuple[str, ...] = ()

    def names(self, text: str) -> list[str]:
        """Classes or labels of a sample; none for a number."""
        if self.task == "regression":
            return []
        return [text] if self.task == "multiclass" else split_labels(text)

    def find_problem(self, text: str) -> str | None:
        """Reason why a text is no target, or None."""
        if self.task == "regression":
            return None if read_number(text) is not None else f"its target '{text}' is no number"
        for name in self.names(text):
            if name not in self.classes:
                return f"its label '{name}' is no class.{nearest_name(name, self.classes)}"
        return None

    def array(self, texts: Sequence[str]) -> np.ndarray:
        """Class indices (N,), int64; zeros and ones (N, L), float32; or numbers (N,), float32."""
        if self.task == "regression":
            return np.array([read_number(text) for text in texts], dtype=np.float32)
        indices = {name: index for index, name in enumerate(self.classes)}
        if self.task == "multiclass":
            return np.array([indices[text] for text in texts], dtype=np.int64)
        targets = np.zeros((len(texts), len(self.classes)), dtype=np.float32)
        for row, text in zip(targets, texts, strict=True):
            row[[indices[name] for name in self.names(text)]] = 1
        return targets


def make_task(name: str, classes: Sequence[str]) -> Task:
    """The task of stored targets."""
    if name == "regression":
        return Regression()
    return MultiLabel(len(classes)) if name == "multilabel" else Multiclass(len(classes))


def split_labels(text: str) -> list[str]:
    """Labels of a cell, each once, in their order.

    Example:
        >>> split_labels("rock | live|rock"), split_labels("|")
        (['rock', 'live'], [])
    """
    return list(dict.fromkeys(filter(None, (part.strip() for part in text.split(SEPARATOR)))))


def read_number(text: str) -> float | None:
    """Number that a text is, or None."""
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


@dataclasses.dataclass(frozen=True)
class NumberRange:
    """Targets that are numbers: minimum, mean, standard deviation and maximum."""

    min: float
    mean: float
    std: float
    max: float

    @classmethod
    def of(cls, targets: np.ndarray) -> NumberRange:
        """Range of targets of shape (N,)."""
        values = targets.astype(np.float64)
        return cls(float(values.min()), float(values.mean()), float(values.std()), float(values.max()))


def count_classes(targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Number of samples of each class or with each label; empty for numbers.

    Args:
        targets: Class indices (N,), or zeros and ones (N, L).
        classes: Names of the classes or labels.
    """
    if not classes:
        return {}
    counts = targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
