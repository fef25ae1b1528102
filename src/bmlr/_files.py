"""Atomic file writes and SHA-256 checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CHECKSUM = "checksum"


def atomic_write(
    path: Path, write: Callable[[Path], None], *, previous: Path | None = None, durable: bool = True
) -> None:
    """Write a file under a temporary name beside it, then rename it.

    A reader sees the old content or the new, never a mixture. The temporary file is removed on any error.

    Args:
        path: Final path of the file.
        write: Writes the content to the path it is called with.
        previous: Path under which the old file is kept; None discards it. The old file is moved once the new one is
            complete; a crash between the two moves leaves the file at ``previous`` only.
        durable: Wait until the file is on the disk, so that it survives a power failure.
    """
    # Not mkstemp: its files are readable by their owner only, and would stay so in a shared folder.
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        write(temporary)
        if durable:  # else a power failure after the rename can leave a file of zeros under the final name
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def check_output(option: str, path: Path, *, is_folder: bool) -> None:
    """Check that a result can be written, before hours go into making it.

    Folders that are missing are no fault: they are made with the result.

    Raises:
        ValueError: If it cannot; the message names the option.
    """
    if is_folder:
        folder = path
    elif path.is_dir():
        raise ValueError(f"Option {option} should be a file. {path} is a folder.")
    else:
        folder = path.parent
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    if not existing.is_dir():
        raise ValueError(f"Option {option}: {path} cannot be written, {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK) or (not is_folder and path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"Option {option}: {path} cannot be written, permission is denied.")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` left by killed processes."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def json_text(content: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None) -> str:
    """JSON text of plain data, with null for NaN and infinity.

    JSON has no word for them: what Python writes in their place is refused by other programs.

    Args:
        content: Plain data.
        indent: Spaces per level; None writes one line.
        default: Called for objects that JSON cannot hold.

    Example:
        >>> json_text({"ratio": float("nan"), "names": ("audio", "video")}, indent=None)
        '{"ratio": null, "names": ["audio", "video"]}'
    """
    return json.dumps(_without_nonfinite(content), indent=indent, allow_nan=False, default=default)


def parse_json(text: str) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: If it is not JSON; NaN and infinity are not.

    Example:
        >>> parse_json('{"ratio": null}')
        {'ratio': None}
    """
    return json.loads(text, parse_constant=_refuse_constant)


def text_checksum(text: str) -> str:
    """SHA-256 checksum of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_checksum(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to JSON entries, replacing an old one.

    Example:
        >>> entries = {"version": 1}
        >>> with_checksum(with_checksum(entries)) == with_checksum(entries)
        True
    """
    content = {name: value for name, value in entries.items() if name != _CHECKSUM}
    return {**content, _CHECKSUM: text_checksum(json.dumps(content, sort_keys=True))}


def has_valid_checksum(entries: Mapping[str, Any]) -> bool:
    """Whether JSON entries contain their checksum."""
    return bool(entries.get(_CHECKSUM) == with_checksum(entries)[_CHECKSUM])


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk.

    A rename then survives a power failure. Windows has no such call.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
