"""Values and targets of dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import nearest_name
from bmlr.tasks import Multiclass, MultiLabel, Regression, Task


def as_values(value: Any, where: str) -> np.ndarray | str | None:
    """A value of a modality as an array, or a text; None where it is missing.

    Images of Pillow become (C, H, W) in [0, 1].

    Raises:
        ValueError: If it is neither numbers nor a text.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if hasattr(value, "getbands") and hasattr(value, "convert"):  # Pillow's, without importing it
        pixels = np.asarray(value.convert("RGB" if len(value.getbands()) > 1 else "L"), dtype=np.float32) / 255
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    try:
        array = np.asarray(value)
    except ValueError:  # nested lists of several lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where} should be numbers (a tensor, an array or lists of one length), an image of Pillow, or a text. "
            f"Found an object of type {type(value).__name__}."
        )
    return array


def entry_of(item: Mapping[str, Any], key: str, where: str) -> Any:
    """An entry of an item that has to be there.

    Raises:
        ValueError: If it is not; the message gives the nearest key.
    """
    if key not in item:
        keys = list(map(str, item))
        raise ValueError(f"{where} should have '{key}'. It has {', '.join(keys)}.{nearest_name(key, keys)}")
    return item[key]


def read_target(value: Any, where: str) -> Any:
    """A target as plain data: a text, a number, or a list of them.

    Raises:
        ValueError: If it is missing, NaN or something else.
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(number, (str, bool, int, float)) for number in values):
        kind = "none" if value is None else f"an object of type {type(value).__name__}"
        raise ValueError(f"{where} should be a class, labels or numbers. Found {kind}.")
    if any(isinstance(number, float) and not math.isfinite(number) for number in values):
        raise ValueError(f"{where} should be finite. Found {value}.")
    return list(values) if isinstance(value, (list, tuple)) else value


def find_target_form(
    targets: Mapping[str, Sequence[Any]],
    task: Task | None,
    classes: tuple[str, ...] | None,
    known: tuple[str, ...] | None,
) -> tuple[Task, tuple[str, ...], dict[str, Tensor]]:
    """Task, names of the classes and targets of all splits.

    Args:
        targets: Targets by split, as :func:`read_target` gives them.
        task: The task, where it is given.
        classes: Names of the classes or labels, where they are given.
        known: Names that the dataset knows.

    Raises:
        ValueError: If the targets are of several kinds, or none of the task.
    """
    listed = [target for values in targets.values() for target in values]
    texts = {isinstance(u, str) for target in listed for u in (target if isinstance(target, list) else [target])}
    lists = {isinstance(target, list) for target in listed}
    if len(texts) > 1 or len(lists) > 1:
        raise ValueError("The targets should be of one kind: texts or numbers, single ones or lists.")
    names = classes or known
    if texts == {True}:
        if lists == {True}:
            return _label_names(targets, task, names)
        names = names or tuple(sorted(set(listed)))
        _check_names({str(target) for target in listed}, names)
        indices = {name: index for index, name in enumerate(names)}
        encoded = {u: torch.tensor([indices[target] for target in values]) for u, values in targets.items()}
        return _checked(task or Multiclass(len(names)), names, encoded)
    if lists == {True} and len({len(target) for target in listed}) > 1:
        raise ValueError("Targets that are lists should have one length: a 0 or 1 for each label, or K numbers.")
    is_float = any(
        isinstance(u, float) for target in listed for u in (target if isinstance(target, list) else [target])
    )
    if task is None:
        task = _task_of(listed, lists == {True}, is_float, names)
    dtype = torch.int64 if task.name == "multiclass" and lists == {False} and not is_float else torch.float32
    encoded = {u: torch.tensor(values, dtype=dtype) for u, values in targets.items()}
    numbers = tuple(map(str, range(task.num_outputs)))
    return _checked(task, () if task.name == "regression" else names or numbers, encoded)


def _task_of(listed: Sequence[Any], are_lists: bool, is_float: bool, names: tuple[str, ...] | None) -> Task:
    if are_lists:
        zeros_and_ones = all(u in {0, 1} for target in listed for u in target)
        width = len(listed[0])
        return MultiLabel(width) if zeros_and_ones else Regression(width)
    if is_float:
        if min(listed) == max(listed):
            raise ValueError(f"The targets are all {listed[0]:g}, so that there is nothing to predict.")
        return Regression()
    if min(listed) < 0:
        raise ValueError(
            f"Targets that are integers should be classes from 0. Found {min(listed)}. Numbers to predict are floats."
        )
    return Multiclass(len(names) if names else int(max(listed)) + 1)


def _label_names(
    targets: Mapping[str, Sequence[Any]], task: Task | None, names: tuple[str, ...] | None
) -> tuple[Task, tuple[str, ...], dict[str, Tensor]]:
    found = {label for values in targets.values() for target in values for label in target}
    names = names or tuple(sorted(found))
    _check_names(found, names)
    encoded = {
        split: torch.tensor([[float(name in target) for name in names] for target in values])
        for split, values in targets.items()
    }
    return _checked(task or MultiLabel(len(names)), names, encoded)


def _check_names(found: set[str], names: Sequence[str]) -> None:
    if unknown := sorted(found - set(names)):
        raise ValueError(
            f"`classes` should hold all classes of the targets, {', '.join(names)}. Found '{unknown[0]}' too."
        )


def _checked(
    task: Task, names: tuple[str, ...], encoded: dict[str, Tensor]
) -> tuple[Task, tuple[str, ...], dict[str, Tensor]]:
    if task.name != "regression" and len(names) != task.num_outputs:
        raise ValueError(
            f"`classes` should hold {task.num_outputs} names, as the task has outputs. Found {len(names)}."
        )
    for split, targets in encoded.items():
        try:
            task.check_targets(targets, len(targets))
        except ValueError as error:
            raise ValueError(f"The targets of `{split}` do not fit the task '{task.name}': {error}") from error
    return task, names, encoded
