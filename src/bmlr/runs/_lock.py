"""Exclusive locks on directories."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
from pathlib import Path
from types import TracebackType

import filelock

from bmlr._files import atomic_write_text, json_text, parse_json
from bmlr.runs._errors import RunError
from bmlr.runs.layout import HOLDER, LOCK

#: Directories locked by this process.
_HELD: set[Path] = set()


class DirectoryLock:
    """Exclusive lock on a directory, held for this process.

    The operating system holds it and releases it when the process ends, also by SIGKILL: the file ``.lock`` that stays
    behind blocks nobody. On a file system without locks, ``filelock`` warns and uses a marker file with the process's
    number instead.

    Args:
        directory: The directory; it is made if it is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = DirectoryLock(folder), DirectoryLock(folder)
        ...     print(first.acquire(), second.acquire(), second.held_elsewhere())
        ...     first.release()
        ...     print(second.acquire())
        ...     second.release()
        True False True
        True
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._lock = filelock.FileLock(self.directory / LOCK, thread_local=False)

    def acquire(self) -> bool:
        """Take the lock without waiting.

        Returns:
            False where another process or object holds it.
        """
        if not self._lock.is_locked:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout:
                return False
            _HELD.add(self.directory.resolve())
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            }
            with contextlib.suppress(OSError):  # it only serves the message to others
                atomic_write_text(self.directory / HOLDER, json_text(holder, indent=None))
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._lock.is_locked:
            _HELD.discard(self.directory.resolve())
            with contextlib.suppress(OSError):
                (self.directory / HOLDER).unlink(missing_ok=True)
        self._lock.release()

    def held_elsewhere(self) -> bool:
        """Whether another process or object holds the lock at this moment."""
        if self._lock.is_locked or not (self.directory / LOCK).exists():
            return False
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            return True
        self._lock.release()
        return False

    @property
    def held_here(self) -> bool:
        """Whether some object of this process holds the lock."""
        return self.directory.resolve() in _HELD

    def __enter__(self) -> DirectoryLock:
        if not self.acquire():
            raise RunError(f"{self.directory} is in use by {self._holder()}. Wait until it ends, or end it.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _holder(self) -> str:
        """Who holds the lock, as far as it is recorded."""
        try:
            holder = parse_json((self.directory / HOLDER).read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
