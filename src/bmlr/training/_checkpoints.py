"""Checkpoint files of a run."""

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

#: Entries that a resumed run needs. A checkpoint without them would fail in the middle of its restoration.
_ENTRIES = {
    "bmlr_run": {"digest", "best", "test_scores", "seconds"},
    "bmlr": {"history", "position", "plan", "seconds", "processes", "guard", "counts_before"},
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Checkpoint that was read and passed its checksum.

    Attributes:
        path: File it was read from.
        content: What Lightning, the module and the recorder saved.
        newer_is_damaged: Whether there is a newer checkpoint that is damaged.
    """

    path: Path
    content: dict[str, Any]
    newer_is_damaged: bool = False


def latest_checkpoint(directory: Path, config: RunConfig) -> Checkpoint | None:
    """Read the last usable checkpoint of a run.

    It is the one before the last if the last is damaged.

    Returns:
        The checkpoint; None without any.

    Raises:
        RunError: If all checkpoints are damaged, or one is of another run.
    """
    last, previous = directory / CHECKPOINT, directory / PREVIOUS
    if not last.exists() and not previous.exists():
        return None
    try:
        if last.exists():  # a run killed between the two renames of a write leaves the previous one only
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
    return Checkpoint(previous, content, newer_is_damaged=last.exists())


def _read_own_checkpoint(path: Path, config: RunConfig) -> dict[str, Any]:
    content = read_checkpoint(path)
    recorded = content.get("bmlr_run")
    if not isinstance(recorded, dict) or recorded.get("digest") != config.digest:
        raise RunError(
            f"The checkpoint {path} is of another run or another version of bmlr. Remove it to start this run from its "
            "beginning."
        )
    for section, names in _ENTRIES.items():
        if missing := sorted(names - set(content.get(section) or {})):
            raise RunError(
                f"The checkpoint {path} is of another version of bmlr: it lacks {', '.join(missing)}. Remove it to "
                "start the run from its beginning."
            )
    return content


class LoadedCheckpoint(TorchCheckpointIO):
    """Checkpoint already read and checked.

    With it the trainer does not read the file a second time.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.content = content

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return self.content
