"""The directory of a run: opened, checked, reused."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

from bmlr._files import atomic_write_text, file_checksum, remove_leftovers
from bmlr._version import __version__
from bmlr.config import RunConfig, read_config
from bmlr.runs import DirectoryLock, RunError, read_result
from bmlr.runs.layout import CHECKPOINT, CONFIG, DATA, DATA_ARRAYS, METRICS, NONFINITE, PREVIOUS, RESULT, TENSORBOARD
from bmlr.training._data_files import has_data_files, read_data_files, write_data_files
from bmlr.training._errors import first_line
from bmlr.training._processes import is_first_process

_log = logging.getLogger("bmlr.training")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        directory: Directory of the run.
        content: Content of ``result.json``.
        reused: Whether the run was already finished, so that nothing was trained.
    """

    directory: Path
    content: dict[str, Any]
    reused: bool = False


def finished_run(directory: Path, config: RunConfig) -> RunResult | None:
    """Result of a run that is already finished, or None.

    Raises:
        RunError: If a file of the run is damaged, or the directory holds another run.
    """
    if not (directory / RESULT).exists():
        return None
    try:
        content = read_result(directory)
    except ValueError as error:
        raise RunError(str(error)) from error
    if content["digest"] != config.digest:
        version = (content.get("versions") or {}).get("bmlr")
        if version != __version__:
            raise RunError(
                f"{directory} holds a run of bmlr {version}, and this is {__version__}. Choose another folder."
            )
        raise RunError(
            f"{directory} holds another run ({content.get('method')} on {content.get('data')}). Choose another folder."
        )
    for name, checksum in content.get("files", {}).items():
        if (directory / name).exists() and file_checksum(directory / name) != checksum:
            raise RunError(f"{directory / name} is damaged. Remove {RESULT} to write both again with --resume.")
    if is_first_process():
        _restore_config(directory, config)
        if not has_data_files(directory):
            config.data.prepare()
            write_data_files(directory, config)
        remove_checkpoints(directory)  # of a run that was killed right after its result was written
    return RunResult(directory, content, reused=True)


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a finished run.

    They are two thirds of its bytes, and nothing reads them any more.
    """
    for name in (CHECKPOINT, PREVIOUS):
        (directory / name).unlink(missing_ok=True)


def _restore_config(directory: Path, config: RunConfig) -> None:
    """Rewrite the damaged configuration of a finished run.

    The digest in its result proves that it was the same.
    """
    path = directory / CONFIG
    try:
        if not path.exists() or read_config(path).settings == config.settings:
            return
    except ValueError:
        pass
    _log.warning("%s was damaged and has been written again.", path)
    _write_config(directory, config)


def lock_directory(directory: Path) -> contextlib.AbstractContextManager[object]:
    """Make the directory of a run and lock it, in the first process.

    A second process would overwrite the files of the first. The process of a grid holds the lock already.

    Raises:
        RunError: If it cannot be made, or another process holds it.
    """
    lock = DirectoryLock(directory)
    if not is_first_process() or lock.held_here:
        return contextlib.nullcontext()
    try:  # safetensors and TensorBoard take no other names, and would fail after an epoch
        str(directory).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RunError(f"The run folder {str(directory)!r} has a name that is not UTF-8. Choose another.") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(directory, error) from error
    return lock


def open_directory(directory: Path, config: RunConfig, *, resume: bool) -> None:
    """Create the directory of a run, or check that it can be resumed.

    The configuration is written either way.

    Raises:
        RunError: If it cannot be written, or holds another run, or holds this one and ``resume`` is False.
    """
    path = directory / CONFIG
    # A run without a checkpoint or weights ended before it had anything to keep: any configuration may take its place.
    if path.exists() and any((directory / name).exists() for name in (CHECKPOINT, PREVIOUS, "best.safetensors")):
        try:
            existing = read_config(path)
        except ValueError as error:
            raise RunError(
                f"{first_line(error)} Remove {path} to have it written again from the options given."
            ) from error
        if existing.settings != config.settings:
            raise RunError(f"{directory} holds a run with another configuration. Choose another folder.")
        if has_data_files(directory) and read_data_files(directory)["digest"] != config.digest:
            raise RunError(f"{directory} holds a run on other data, or of another version. Choose another folder.")
        if not resume:
            raise RunError(f"{directory} holds an interrupted run. Continue it with --resume or choose another folder.")
    elif path.exists():
        shutil.rmtree(directory / TENSORBOARD, ignore_errors=True)
        (directory / NONFINITE).unlink(missing_ok=True)
    _write_config(directory, config)
    write_data_files(directory, config)
    for name in (
        CONFIG,
        RESULT,
        METRICS,
        CHECKPOINT,
        NONFINITE,
        DATA,
        DATA_ARRAYS,
        "best.safetensors",
        "last.safetensors",
    ):
        remove_leftovers(directory / name)


def _write_config(directory: Path, config: RunConfig) -> None:
    try:
        atomic_write_text(directory / CONFIG, config.as_yaml())
    except OSError as error:
        raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: OSError) -> RunError:
    return RunError(f"The run folder {directory} cannot be written: {error.strerror or error}.")
