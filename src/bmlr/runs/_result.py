"""The schema of ``result.json``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bmlr.runs.layout import RESULT
from bmlr.runs.storage import read_json

_REMEDY = "Remove it and resume the run to have it written again."

#: Entries of every result with their types, by the path to them.
_ENTRIES: dict[str, Any] = {
    "data": str, "protocol": str, "method": str, "seed": int, "best_epoch": int, "epochs": int, "data_passes": float,
    "majority_rate": float, "seconds": float, "digest": str, "samples": dict, "samples.train": int, "samples.val": int,
    "samples.test": int, "test": dict, "test.accuracy": float, "test.unimodal_accuracy": dict, "test.ratio": dict,
    "validation": dict, "validation.accuracy": float,
}  # fmt: skip


#: Accuracies, which are null where the targets are numbers.
_NOT_FOR_NUMBERS = ("majority_rate", "test.accuracy", "validation.accuracy")


def read_result(directory: Path) -> dict[str, Any]:
    """Read and check the ``result.json`` of a run.

    Returns:
        The entries. Accuracies of modalities that no sample has, and of numbers, are NaN, in the file null.

    Raises:
        FileNotFoundError: If the run has no result.
        ValueError: If the file is damaged, was changed, or is not the result of a run.
    """
    path = directory / RESULT
    try:
        result = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} {_REMEDY}") from error
    for name, kind in _ENTRIES.items():
        _check_entry(result, name, kind, path)
    for name in ("test", "validation", "test_last_epoch", "test_best_epoch"):
        if (score := result.get(name)) is not None:
            _check_score(score, f"{path}: {name}")
            accuracies = score.get("unimodal_accuracy") or {}
            score["accuracy"] = math.nan if score.get("accuracy") is None else score["accuracy"]
            score["unimodal_accuracy"] = {u: math.nan if value is None else value for u, value in accuracies.items()}
    result["majority_rate"] = math.nan if result["majority_rate"] is None else result["majority_rate"]
    return result


def _check_entry(result: dict[str, Any], name: str, kind: Any, path: Path) -> None:
    value: Any = result
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if kind is float and value is None and name in _NOT_FOR_NUMBERS:
        fits = isinstance(result.get("test"), dict) and "metrics" in result["test"]
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits:
        raise ValueError(
            f"{path} has no usable entry {name}. Found {value!r}. It is intact, so another version of bmlr wrote it. "
            f"{_REMEDY}"
        )


def _check_score(score: Any, where: str) -> None:
    """Raise unless accuracies are in [0, 1] and ratios non-negative.

    None stands for a modality that no sample has, and for a ratio by zero.
    """
    accuracies = {"accuracy": score.get("accuracy"), **(score.get("unimodal_accuracy") or {})}
    for name, value in accuracies.items():
        absent = value is None and (name != "accuracy" or "metrics" in score)
        if not absent and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError(f"{where} should hold accuracies in [0, 1]. Found {name} = {value!r}.")
    for name, value in (score.get("ratio") or {}).items():
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"{where} should hold non-negative ratios. Found {name} = {value!r}.")
