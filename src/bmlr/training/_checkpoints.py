"""Checkpoints of a run."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from bmlr.config import RunConfig
from bmlr.runs import RunError
from bmlr.runs.layout import CHECKPOINT, PREVIOUS
from bmlr.runs.storage import (
    DamagedFileError,
    read_checkpoint,
)

_log = logging.getLogger("bmlr.training")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    content: dict[str, Any]
    other_is_damaged: bool = False


def latest_checkpoint(directory: Path, config: RunConfig) -> Checkpoint | None:
    """The last checkpoint of a run; the one before it where that is damaged; None where there is none."""
    last, previous = directory / CHECKPOINT, directory / PREVIOUS
    if not last.exists() and not previous.exists():
        return None
    try:
        if last.exists():  # it is not there if the run was killed between the two moves of writing it
            return Checkpoint(last, _read_own_checkpoint(last, config))
    except DamagedFileError as error:
        if not previous.exists():
            raise RunError(
                f"The checkpoint {last} is damaged or no checkpoint. Remove it to start the run from its beginning."
            ) from error
    try:
        content = _read_own_checkpoint(previous, config)
    except DamagedFileError as error:
        raise RunError(
            f"The checkpoints {last} and {previous.name} are damaged or no checkpoints. Remove them to start the run "
            "from its beginning."
        ) from error
    if last.exists():
        _log.warning("The checkpoint %s is damaged; the run goes on from the one before it.", last)
    return Checkpoint(previous, content, other_is_damaged=last.exists())


def _read_own_checkpoint(path: Path, config: RunConfig) -> dict[str, Any]:
    content = read_checkpoint(path)
    recorded = content.get("bmlr_run")
    if not isinstance(recorded, dict) or recorded.get("digest") != config.digest:
        raise RunError(f"The checkpoint {path} is of another run. Remove it to start this one from its beginning.")
    return content


class LoadedCheckpoint(TorchCheckpointIO):
    """Gives the trainer what was read and checked already, rather than the file a second time."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.content = content

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return self.content
