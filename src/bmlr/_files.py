"""Files that are either whole or not there, and sums by which damage is noticed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CHECKSUM = "checksum"


def atomic_write(path: Path, write: Callable[[Path], None], *, previous: Path | None = None) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there; on any error nothing is left behind.

    Args:
        path: The file.
        write: Fills the file it is given.
        previous: Where what is at ``path`` now is kept, once the new file is whole; None forgets it. A crash between
            the two moves leaves the file at ``previous`` only.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"  # not mkstemp, whose files only their owner can read
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that writes of ``path`` left behind when their process was killed."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def text_checksum(text: str) -> str:
    """SHA-256 sum of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries, as they come from JSON, with their checksum among them, in place of one they have.

    Example:
        >>> sealed(sealed({"version": 1})) == sealed({"version": 1}) != sealed({"version": 2})
        True
    """
    others = {name: value for name, value in entries.items() if name != _CHECKSUM}
    return {**others, _CHECKSUM: text_checksum(json.dumps(others, sort_keys=True))}


def is_sealed(entries: Mapping[str, Any]) -> bool:
    """Whether entries hold the checksum that fits them."""
    return bool(entries.get(_CHECKSUM) == sealed(entries)[_CHECKSUM])


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure too, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
