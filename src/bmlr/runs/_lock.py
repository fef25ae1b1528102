"""A lock on a directory that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bmlr.runs._errors import RunError

LOCK = ".lock"


_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


class DirectoryLock:
    """An exclusive lock on a directory, kept by the operating system.

    The system gives it back when its process ends, also by SIGKILL, so a lock of a dead process does not exist: the
    file ``.lock`` that stays behind says nothing. On a file system without locks a warning is given and none is kept.

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
        self.path = Path(directory) / LOCK
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False where another process, or another object here, has it."""
        if self._file is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            taken = _lock(file)
        except BaseException:
            os.close(file)
            raise
        if not taken:
            os.close(file)
            return False
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def held_elsewhere(self) -> bool:
        """Whether somebody else has the lock at this moment."""
        if self._file is not None or not self.path.exists():
            return False
        taken = self.acquire()
        self.release()
        return not taken

    def __enter__(self) -> DirectoryLock:
        if not self.acquire():
            owner = ""
            with contextlib.suppress(OSError):
                owner = self.path.read_text(encoding="utf-8").strip()
            raise RunError(f"{self.path.parent} is in use by another process{f' ({owner})' if owner else ''}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(file: int) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        warnings.warn("There are no file locks here: start no second comparison on this folder.", stacklevel=3)
    return True


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep a directory to oneself.

    Raises:
        RunError: If another process has it.
    """
    with DirectoryLock(directory):
        yield
