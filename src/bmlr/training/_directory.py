"""The directory of a run: opened, checked, reused."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from bmlr._files import atomic_write_text, file_checksum, remove_leftovers
from bmlr._version import __version__
from bmlr.config import RunConfig, read_config
from bmlr.runs import RunError, read_result
from bmlr.runs.layout import CHECKPOINT, CONFIG, METRICS, NONFINITE, RESULT
from bmlr.training._errors import first_line
from bmlr.training._trainer import is_first_process

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
    _restore_config(directory, config)
    return RunResult(directory, content, reused=True)


def _restore_config(directory: Path, config: RunConfig) -> None:
    """Rewrite the damaged configuration of a finished run.

    The digest in its result proves that it was the same.
    """
    path = directory / CONFIG
    try:
        if not path.exists() or read_config(path).digest == config.digest:
            return
    except ValueError:
        pass
    if is_first_process():
        _log.warning("%s was damaged and has been written again.", path)
        _write_config(directory, config)


def open_directory(directory: Path, config: RunConfig, *, resume: bool) -> None:
    """Create the directory of a run, or check that it can be resumed.

    The configuration is written either way.

    Raises:
        RunError: If it cannot be written, or holds another run, or holds this one and ``resume`` is False.
    """
    path = directory / CONFIG
    if path.exists():
        try:
            existing = read_config(path)
        except ValueError as error:
            raise RunError(
                f"{first_line(error)} Remove {path} to have it written again from the options given."
            ) from error
        if existing.digest != config.digest:
            raise RunError(f"{directory} holds a run with another configuration. Choose another folder.")
        if not resume:
            raise RunError(f"{directory} holds an interrupted run. Continue it with --resume or choose another folder.")
    _write_config(directory, config)
    for name in (CONFIG, RESULT, METRICS, CHECKPOINT, NONFINITE, "best.safetensors", "last.safetensors"):
        remove_leftovers(directory / name)


def _write_config(directory: Path, config: RunConfig) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write_text(directory / CONFIG, config.as_yaml())
    except OSError as error:
        raise RunError(f"The run folder {directory} cannot be written: {error.strerror or error}.") from error
