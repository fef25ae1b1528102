"""Finds runs and reads what they hold; whatever cannot be used is named with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bmlr.runs._metrics import read_metrics
from bmlr.runs.layout import CONFIG, FAILURE, METRICS, RESULT

_MARKS = (CONFIG, RESULT, METRICS, FAILURE)


_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run with a result.

    Attributes:
        directory: Where it is.
        result: What ``result.json`` holds.
        config: What ``config.yaml`` holds.
        config_text: The text of ``config.yaml``.
        metrics: The table of epochs; None where it is missing or damaged.
        remark: Why there are no metrics, or "".
    """

    directory: Path
    result: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    metrics: pd.DataFrame | None
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class ExcludedRun:
    """A run, or what was taken for one, that is not in the report's numbers.

    Attributes:
        directory: Where it is.
        state: failed, unfinished, unreadable, repeated or no run.
        reason: One sentence.
        details: The traceback of a failed run, or the end of its log, or "".
    """

    directory: Path
    state: str
    reason: str
    details: str = ""


def read_runs(paths: Iterable[Path | str]) -> tuple[list[FinishedRun], list[ExcludedRun]]:
    """Read runs, each given by its directory or by a folder that holds runs at any of four levels.

    Returns:
        The finished runs, and those left out.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If no path is given, or none leads to a finished run; the message says why.
    """
    given = [Path(path) for path in paths]
    if not given:
        raise ValueError("`runs` should name at least one run or folder of runs. Found none.")
    finished: list[FinishedRun] = []
    excluded: list[ExcludedRun] = []
    seen: set[Path] = set()
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"There is no run {path}: no such folder.")
        for found in _find(path):
            directory = found.directory if isinstance(found, ExcludedRun) else found
            if directory.resolve() in seen:
                continue
            seen.add(directory.resolve())
            run = found if isinstance(found, ExcludedRun) else _read(found)
            if isinstance(run, FinishedRun):
                finished.append(run)
            else:
                excluded.append(run)
    if not finished:
        first = excluded[0]
        others = f" So it is with {len(excluded) - 1} more." if len(excluded) > 1 else ""
        raise ValueError(f"There is no finished run to report. {first.directory}: {first.reason}{others}")
    return finished, excluded


def _find(path: Path) -> Iterator[Path | ExcludedRun]:
    """The runs a path leads to, or the one reason why there is none."""
    if not path.is_dir():
        yield ExcludedRun(path, "no run", "It is a file; a run is a folder.")
        return
    found = list(_walk(path, _DEPTH))
    if found:
        yield from found
    elif any(path.iterdir()):
        yield ExcludedRun(path, "no run", f"Neither it nor a folder in it holds a {CONFIG} or {RESULT}.")
    else:
        yield ExcludedRun(path, "no run", "The folder is empty.")


def _walk(path: Path, depth: int) -> Iterator[Path | ExcludedRun]:
    if any((path / mark).is_file() for mark in _MARKS):
        yield path
        return
    for child in sorted(path.iterdir(), key=lambda child: child.name):
        if child.is_dir() and not child.name.startswith(".") and depth:
            if not any(child.iterdir()):
                yield ExcludedRun(child, "no run", "The folder is empty.")
            else:
                yield from _walk(child, depth - 1)


def _read(directory: Path) -> FinishedRun | ExcludedRun:
    try:
        if not (directory / RESULT).is_file():
            return _without_result(directory)
        result = _read_result(directory / RESULT)
        text, config = _read_config(directory / CONFIG)
        _check_pair(result, config)
    except OSError as error:
        return ExcludedRun(directory, "unreadable", f"{error.filename or directory}: {error.strerror or error}.")
    except ValueError as error:
        return ExcludedRun(directory, "unreadable", str(error))
    try:
        return FinishedRun(directory, result, config, text, _checked_metrics(directory, result))
    except (OSError, ValueError) as error:
        return FinishedRun(directory, result, config, text, None, f"No curves of {directory}: {error}")


def _without_result(directory: Path) -> ExcludedRun:
    failure = directory / FAILURE
    if failure.is_file():
        return _failed(directory, failure)
    epochs = ""
    try:
        done = len(read_metrics(directory))
        planned = _read_config(directory / CONFIG)[1].get("trainer", {}).get("epochs")
        epochs = f" after {done} of {planned} epochs" if planned else f" after {done} epochs"
    except (OSError, ValueError, AttributeError):
        epochs = " before its first epoch was done" if not (directory / METRICS).is_file() else ""
    place = shlex.quote(str(directory))
    command = f"bmlr train --config {shlex.quote(str(directory / CONFIG))} --run {place} --resume"
    return ExcludedRun(directory, "unfinished", f"It stopped, or is still running,{epochs}. To go on: {command}")


def _failed(directory: Path, path: Path) -> ExcludedRun:
    """A failed run with what was recorded of it, which may be damaged itself."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
    except ValueError:
        return ExcludedRun(directory, "failed", f"It failed; why cannot be told, {path.name} is cut off.", text)
    content = content if isinstance(content, dict) else {}
    log = content.get("log")
    details = str(content.get("traceback") or "") or "\n".join(map(str, log if isinstance(log, list) else []))
    return ExcludedRun(directory, "failed", f"It failed: {content.get('error') or 'no reason was recorded'}", details)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{path.name} is cut off or no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} should hold entries by name. Found {type(content).__name__}.")
    for name, kind in _ENTRIES.items():
        value: Any = content
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if kind is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits:
            raise ValueError(f"{path.name} has no usable entry {name}. Found {value!r}.")
    for split in ("test", "validation", "test_last_epoch", "test_best_epoch"):
        _check_score(content.get(split), f"{path.name}: {split}")
    return content


#: What the report cannot do without.
_ENTRIES: dict[str, Any] = {
    "data": str, "protocol": str, "method": str, "seed": int, "best_epoch": int, "epochs": int, "data_passes": float,
    "majority_rate": float, "seconds": float, "samples": dict, "samples.train": int, "samples.val": int,
    "samples.test": int, "test": dict, "test.accuracy": float, "test.unimodal_accuracy": dict, "test.ratio": dict,
    "validation": dict, "validation.accuracy": float,
}  # fmt: skip


def _check_score(score: Any, where: str) -> None:
    """Accuracies lie in [0, 1]; NaN and None stand for a modality that no sample has or a ratio by zero."""
    if score is None:
        return
    accuracies = {"accuracy": score.get("accuracy"), **(score.get("unimodal_accuracy") or {})}
    for name, value in accuracies.items():
        missing = name != "accuracy" and (value is None or (isinstance(value, float) and math.isnan(value)))
        if not missing and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError(f"{where} should hold accuracies in [0, 1]. Found {name} = {value!r}.")
    for name, value in (score.get("ratio") or {}).items():
        if value is not None and not (isinstance(value, (int, float)) and (math.isnan(value) or value >= 0)):
            raise ValueError(f"{where} should hold non-negative ratios. Found {name} = {value!r}.")


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing.")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not {"data", "method", "seed"} <= set(content):
        raise ValueError(f"{path.name} is not the configuration of a run: data, method or seed is missing.")
    for name in ("data", "method"):
        if not isinstance(content[name], dict) or not isinstance(content[name].get("class_path"), str):
            raise ValueError(f"{path.name}: {name} should have an entry class_path.")
    return text, content


def _check_pair(result: dict[str, Any], config: dict[str, Any]) -> None:
    """A result and a configuration of different runs would re-create something else than the numbers shown."""
    method = config["method"]["class_path"].rpartition(".")[2]
    if result["method"] != method or result["seed"] != config["seed"]:
        raise ValueError(
            f"{RESULT} ({result['method']}, seed {result['seed']}) and {CONFIG} ({method}, seed {config['seed']}) "
            "are of different runs."
        )


def _checked_metrics(directory: Path, result: dict[str, Any]) -> pd.DataFrame:
    metrics = read_metrics(directory)
    if len(metrics) != result["epochs"]:
        raise ValueError(f"{METRICS} holds {len(metrics)} epochs where {RESULT} says {result['epochs']}.")
    curves = [name for name in metrics if str(name).startswith(("val_accuracy", "val_ratio_", "train_reshaped_"))]
    if not curves or any(not pd.api.types.is_numeric_dtype(metrics[name]) for name in ["epoch", *curves]):
        raise ValueError(f"{METRICS} should hold numbers in the columns of accuracies.")
    return metrics
