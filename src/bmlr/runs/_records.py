"""Records of runs: the only reader of run directories."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import shlex
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bmlr._files import atomic_write_text, json_text, parse_json
from bmlr.config import read_config_entries
from bmlr.runs._metrics import read_metrics
from bmlr.runs._result import read_result
from bmlr.runs.layout import CONFIG, FAILURE, LOG, METRICS, RESULT
from bmlr.tables import format_count

State = Literal["finished", "failed", "unfinished", "unreadable", "no run"]

_MAX_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Content of a run directory.

    Attributes:
        label: Its name in a table; "" leaves that to :func:`group_runs`.
        directory: Its directory.
        config: Content of ``config.yaml``; empty where there is none.
        result: Content of ``result.json``; None if the run is not finished.
        failure: Content of ``failed.json``; None if it did not fail.
        problem: Reason why the directory cannot be read as a run, or "".
        exists: False where the directory holds no file of a run.
    """

    label: str
    directory: Path
    config: dict[str, Any]
    result: dict[str, Any] | None
    failure: dict[str, Any] | None = None
    problem: str = ""
    exists: bool = True

    @property
    def state(self) -> State:
        """One of finished, failed, unfinished, unreadable and no run."""
        if self.problem:
            return "unreadable" if self.exists else "no run"
        if self.result is not None:
            return "finished"
        return "unfinished" if self.failure is None else "failed"

    @property
    def finished_result(self) -> dict[str, Any]:
        """The result of a finished run.

        Raises:
            ValueError: If the run is not finished.
        """
        if self.result is None:
            raise ValueError(f"{self.directory} is not finished: it has no {RESULT}.")
        return self.result

    @property
    def reason(self) -> str:
        """Reason why there is no usable result, as a sentence, or ""."""
        if self.problem or self.result is not None:
            return self.problem
        if self.failure is not None:
            return f"It failed: {self.failure.get('error') or 'no reason was recorded'}"
        epochs = " before its first epoch was done"
        if (self.directory / METRICS).is_file():
            planned = self.config.get("trainer", {}).get("epochs")
            done = 0 if self.metrics is None else len(self.metrics)
            epochs = f" after {done}{f' of {planned}' if planned else ''} epochs" if done else ""
        config, directory = shlex.quote(str(self.directory / CONFIG)), shlex.quote(str(self.directory))
        command = f"bmlr train --config {config} --run {directory} --resume"
        return f"It stopped, or is still running,{epochs}. To go on: {command}"

    @property
    def details(self) -> str:
        """Traceback of a failed run, or the end of its log, or ""."""
        failure = self.failure or {}
        log = failure.get("log")
        return str(failure.get("traceback") or "") or "\n".join(map(str, log if isinstance(log, list) else []))

    @property
    def metrics(self) -> pd.DataFrame | None:
        """Table of epochs; None where it is missing or damaged."""
        return self._metrics[0]

    @property
    def metrics_problem(self) -> str:
        """Reason why there are no metrics, or ""."""
        return self._metrics[1]

    @functools.cached_property
    def _metrics(self) -> tuple[pd.DataFrame | None, str]:
        try:
            return _checked_metrics(self.directory, self.result), ""
        except (OSError, ValueError) as error:
            return None, f"No curves of {self.directory}: {error}"


def read_run(directory: Path, label: str = "") -> RunRecord:
    """Read a run of any state.

    A directory that does not exist yet is an unfinished run.

    Raises:
        ValueError: If its configuration or result is damaged or they do not belong together; the message says what
            to do.
    """
    config: dict[str, Any] = {}
    if (directory / CONFIG).is_file():
        config = read_config_entries(directory / CONFIG)
    result = None
    if (directory / RESULT).is_file():
        result = read_result(directory)
        if not config:
            raise ValueError(f"{directory} holds a {RESULT} but no {CONFIG}: it cannot be told what was run.")
        _check_same_run(directory, result, config)
    return RunRecord(label, directory, config, result, None if result else _read_failure(directory))


def find_runs(paths: Iterable[Path | str]) -> list[RunRecord]:
    """Read all runs in folders, each once.

    A folder may be a run itself or hold runs up to four levels below.

    Returns:
        Records of all states; those with the state unreadable or no run have a ``reason`` and no content.

    Raises:
        FileNotFoundError: If a path does not exist.
    """
    records: dict[Path, RunRecord] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no run {path}: no such folder.")
        for record in _read_folder(path):
            records.setdefault(record.directory.resolve(), record)
    return list(records.values())


def write_failure(directory: Path, error: BaseException | str, *, log_lines: int = 40) -> None:
    """Write ``failed.json``: error, traceback, end of the log, configuration.

    Args:
        directory: Directory of the run.
        error: The exception, or a sentence where the process ended without one.
        log_lines: Lines of the log that are kept.
    """
    if isinstance(error, BaseException):
        trace = "".join(traceback.format_exception(error))
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        trace, message = "", error
    log = directory / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-log_lines:] if log.is_file() else []
    try:
        config = read_config_entries(directory / CONFIG)
    except (OSError, ValueError) as unreadable:  # the failure is recorded all the same
        config = {"unreadable": str(unreadable)}
    content = {
        "error": message,
        "traceback": trace,
        "log": lines,
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "config": config,
    }
    atomic_write_text(directory / FAILURE, json_text(content, default=str) + "\n")


def _read_folder(path: Path) -> Iterator[RunRecord]:
    """Read the runs below a path; without any, explain why."""
    if not path.is_dir():
        yield _unusable(path, "It is a file; a run is a folder.", exists=False)
    elif records := list(_walk(path, _MAX_DEPTH)):
        yield from records
    else:
        yield _unusable(path, f"Neither it nor a folder in it holds a {CONFIG} or {RESULT}.", exists=False)


def _walk(path: Path, depth: int) -> Iterator[RunRecord]:
    if any((path / name).is_file() for name in (CONFIG, RESULT, METRICS, FAILURE)):
        yield _read_or_explain(path)
        return
    children = sorted(path.iterdir(), key=lambda child: child.name)
    if not children:
        yield _unusable(path, "The folder is empty.", exists=False)
    for child in children:
        if child.is_dir() and not child.name.startswith(".") and depth:
            yield from _walk(child, depth - 1)


def _read_or_explain(directory: Path) -> RunRecord:
    try:
        record = read_run(directory)
    except OSError as error:
        return _unusable(directory, f"{error.filename or directory}: {error.strerror or error}.")
    except ValueError as error:
        return _unusable(directory, str(error))
    if record.config or record.failure is not None:
        return record
    return _unusable(directory, f"{CONFIG} is missing: it cannot be told what was run.")


def _unusable(directory: Path, problem: str, *, exists: bool = True) -> RunRecord:
    return RunRecord("", directory, {}, None, problem=problem, exists=exists)


def _read_failure(directory: Path) -> dict[str, Any] | None:
    """Content of ``failed.json``; a damaged one still marks the run as failed."""
    path = directory / FAILURE
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = parse_json(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return {"error": f"the reason is not known, {path.name} is cut off or damaged.", "traceback": text}
    return content


def _check_same_run(directory: Path, result: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise where result and configuration are of different runs."""
    method = config["method"]["class_path"].rpartition(".")[2]
    if result["method"] != method or result["seed"] != config["seed"]:
        raise ValueError(
            f"{directory}: {RESULT} ({result['method']}, seed {result['seed']}) and {CONFIG} ({method}, seed "
            f"{config['seed']}) are of different runs. Put back the file that belongs here, or make the run again."
        )


def _checked_metrics(directory: Path, result: dict[str, Any] | None) -> pd.DataFrame:
    metrics = read_metrics(directory)
    if result is None:
        return metrics
    if len(metrics) != result["epochs"]:
        raise ValueError(
            f"{METRICS} holds {format_count(len(metrics), 'epoch')} where {RESULT} says {result['epochs']}."
        )
    curves = [name for name in metrics if str(name).startswith(("val_accuracy", "val_ratio_", "train_reshaped_"))]
    if not curves or any(not pd.api.types.is_numeric_dtype(metrics[name]) for name in ["epoch", *curves]):
        raise ValueError(f"{METRICS} should hold numbers in the columns of accuracies.")
    return metrics
