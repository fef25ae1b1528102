"""The schema of ``result.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmlr.runs.layout import RESULT
from bmlr.runs.storage import read_json
from bmlr.tasks import metric_form

_REMEDY = "Remove it and resume the run to have it written again."

#: Entries of every result with their types, by the path to them.
_ENTRIES: dict[str, Any] = {
    "data": str, "protocol": str, "method": str, "seed": int, "best_epoch": int, "epochs": int, "data_passes": float,
    "seconds": float, "digest": str, "samples": dict, "samples.train": int, "samples.val": int, "samples.test": int,
    "metric": str, "monitor": str, "test": dict, "test.ratio": dict, "validation": dict,
}  # fmt: skip


def read_result(directory: Path) -> dict[str, Any]:
    """Read and check the ``result.json`` of a run.

    Returns:
        The entries. A metric that is not defined, such as of a modality that no sample has, is NaN, in the file null.
        Results from before there were metrics beside accuracy are read as well.

    Raises:
        FileNotFoundError: If the run has no result.
        ValueError: If the file is damaged, was changed, or is not the result of a run.
    """
    path = directory / RESULT
    try:
        result = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} {_REMEDY}") from error
    _fill_older(result)
    metric = result["metric"]
    for name, kind in _ENTRIES.items():
        _check_entry(result, name, kind, path)
    _check_entry(result, f"test.unimodal_{metric}", dict, path)
    if metric == "accuracy":  # others may be undefined, as of a label that never occurs
        for name in ("constant_score", "test.accuracy", "validation.accuracy"):
            _check_entry(result, name, float, path)
    for name in ("test", "validation", "test_last_epoch", "test_best_epoch"):
        if (score := result.get(name)) is not None:
            _check_score(score, f"{path}: {name}")
            _fill_undefined(score, metric)
    if result.get("constant_score") is None:
        result["constant_score"] = math.nan
    return result


def _fill_older(result: dict[str, Any]) -> None:
    """Entries of a result from before there were metrics beside accuracy."""
    result.setdefault("metric", "accuracy")
    result.setdefault("monitor", result["metric"])
    if "majority_rate" in result:
        result["constant_score"] = result.pop("majority_rate")


def _fill_undefined(score: dict[str, Any], metric: str) -> None:
    """NaN for null."""
    for name in dict.fromkeys([metric, *metric_names(score)]):
        if score.get(name) is None:
            score[name] = math.nan
        values = score.get(f"unimodal_{name}") or {}
        score[f"unimodal_{name}"] = {u: math.nan if value is None else value for u, value in values.items()}


def metric_names(score: Mapping[str, Any]) -> list[str]:
    """Names of the metrics in a score of a result, the primary one first."""
    return [name for name in score if f"unimodal_{name}" in score]


def primary_score(score: Mapping[str, Any], metric: str) -> tuple[float, dict[str, float]]:
    """Multimodal and unimodal values of a metric in a score of a result."""
    return float(score[metric]), dict(score.get(f"unimodal_{metric}") or {})


def _check_entry(result: dict[str, Any], name: str, kind: Any, path: Path) -> None:
    value: Any = result
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits:
        raise ValueError(
            f"{path} has no usable entry {name}. Found {value!r}. It is intact, so another version of bmlr wrote it. "
            f"{_REMEDY}"
        )


def _check_score(score: Any, where: str) -> None:
    """Raise unless metrics are numbers, rates are in [0, 1] and ratios are non-negative.

    None stands for a metric that is not defined, and for a ratio by zero.
    """
    for metric in metric_names(score):
        form = metric_form(metric)
        for name, value in {metric: score[metric], **(score[f"unimodal_{metric}"] or {})}.items():
            if value is not None and not (isinstance(value, (int, float)) and (not form.is_rate or 0 <= value <= 1)):
                allowed = f"{form.title} in [0, 1]" if form.is_rate else f"{form.title} as a number"
                raise ValueError(f"{where} should hold {allowed}. Found {name} = {value!r}.")
    for name, value in (score.get("ratio") or {}).items():
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"{where} should hold non-negative ratios. Found {name} = {value!r}.")
