"""Exclusive locks on directories."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import filelock

from bmlr.runs._errors import RunError
from bmlr.runs.layout import LOCK


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
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def held_elsewhere(self) -> bool:
        """Whether another process or object holds the lock at this moment."""
        if self._lock.is_locked or not (self.directory / LOCK).exists():
            return False
        acquired = self.acquire()
        self.release()
        return not acquired

    def __enter__(self) -> DirectoryLock:
        if not self.acquire():
            raise RunError(f"{self.directory} is in use by another process. Wait until it ends, or end it.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
