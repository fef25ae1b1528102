"""The store of runs: which are finished, which failed and why, and what they hold."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from bmlr._files import atomic_write_text
from bmlr.runs.layout import CONFIG, FAILURE, LOG, RESULT
from bmlr.runs.storage import read_result

State = Literal["new", "interrupted", "failed", "finished"]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as it lies on disk.

    Attributes:
        label: What it is counted as in a table.
        directory: Where it is.
        config: What ``config.yaml`` holds.
        result: What ``result.json`` holds; None if the run is not finished.
        failure: What ``failed.json`` holds; None if it did not fail.
    """

    label: str
    directory: Path
    config: dict[str, Any]
    result: dict[str, Any] | None
    failure: dict[str, Any] | None = None

    @property
    def state(self) -> State:
        """new, interrupted, failed or finished."""
        if self.result is not None:
            return "finished"
        if self.failure is not None:
            return "failed"
        return "interrupted" if self.config else "new"


def read_record(directory: Path, label: str = "") -> RunRecord:
    """Read a run, whatever its state.

    Raises:
        ValueError: If a file of it is cut off or not what it should be; the message names it.
    """
    config = _read_yaml(directory / CONFIG)
    path = directory / RESULT
    result = None
    if path.is_file():
        try:
            result = read_result(path)
        except ValueError as error:
            raise ValueError(f"{error} Remove it, and the same command finishes the run again.") from error
        if not config:
            raise ValueError(f"{directory} holds a {RESULT} but no {CONFIG}: it cannot be told what was run.")
        _check_result(path, result)
    failure = None if result is not None else _read_json(directory / FAILURE)
    return RunRecord(label, directory, config, result, failure)


def read_store(runs: Iterable[Path]) -> list[RunRecord]:
    """All runs in folders of runs; a folder may be a run itself.

    Raises:
        FileNotFoundError: If a folder does not exist, or holds no run.
        ValueError: If a file of a run is cut off or not what it should be; the message names it.
    """
    records: dict[Path, RunRecord] = {}
    for folder in runs:
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder of runs {folder}.")
        found = [path for path in (folder, *sorted(folder.iterdir())) if (path / CONFIG).is_file()]
        if not found:
            raise FileNotFoundError(f"There is no run in {folder}: no folder in it holds a {CONFIG}.")
        records |= {path.resolve(): read_record(path) for path in found}
    return list(records.values())


def write_failure(directory: Path, error: BaseException | str, *, log_lines: int = 40) -> None:
    """Record why a run failed: the error, its traceback, the end of the log and the configuration.

    Args:
        directory: Directory of the run.
        error: The exception, or a sentence where the process ended without one.
        log_lines: Lines of the log that are kept.
    """
    if isinstance(error, BaseException):
        text = "".join(traceback.format_exception(error))
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        text, what = "", error
    log = directory / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-log_lines:] if log.is_file() else []
    try:
        config = _read_yaml(directory / CONFIG)
    except ValueError as unreadable:
        config = {"unreadable": str(unreadable)}
    content = {
        "error": what,
        "traceback": text,
        "log": lines,
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "config": config,
    }
    atomic_write_text(directory / FAILURE, json.dumps(content, indent=2, default=str) + "\n")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not {"data", "method", "trainer", "seed"} <= set(content):
        raise ValueError(f"{path} is cut off or not the configuration of a run.")
    return content


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{path} is cut off or damaged ({error}). Remove it and start again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold entries by name. Found {type(content).__name__}.")
    return content


_ENTRIES = ("data", "protocol", "method", "seed", "test", "validation", "epochs", "data_passes", "majority_rate",
            "seconds", "samples", "digest")  # fmt: skip


def _check_result(path: Path, content: dict[str, Any]) -> None:
    missing = [name for name in _ENTRIES if name not in content]
    if not missing and not {"accuracy", "unimodal_accuracy", "ratio"} <= set(content["test"]):
        missing = ["test.accuracy, test.unimodal_accuracy or test.ratio"]
    if missing:
        raise ValueError(f"{path} is not a run's result: it lacks {', '.join(missing)}.")
