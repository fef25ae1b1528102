"""The process of one run of a grid: ``python -m bmlr.benchmark._worker DIRECTORY [MODULE …]``.

It reads ``config.yaml`` from the run's directory, locks the directory, trains or resumes, and records a failure. Its
standard input is a pipe from the process that started it. When that process ends, even by SIGKILL, the pipe closes, and
the run stops with a checkpoint of its last step.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bmlr.benchmark._jobs import BUSY, DONE, FAILED, STOPPED
from bmlr.config import read_config
from bmlr.runs import DirectoryLock, RunInterruptedError, write_failure
from bmlr.runs.layout import CONFIG, FAILURE
from bmlr.training import train

_GRACE = 10.0  # seconds to write a checkpoint
# Processes of a distributed run inherit this variable: the first of them holds the lock for all.
_LOCKED = "BMLR_RUN_LOCK"


def main(arguments: Sequence[str]) -> int:
    """Train the run in a directory; return its exit status."""
    directory = Path(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if os.environ.get(_LOCKED) == str(directory):
        return _run(directory, arguments[1:])
    lock = DirectoryLock(directory)
    if not lock.acquire():
        return BUSY
    os.environ[_LOCKED] = str(directory)
    for leftover in directory.glob(".*.tmp"):  # left by a process that was killed while writing
        with contextlib.suppress(OSError):
            leftover.unlink()
    try:
        return _run(directory, arguments[1:])
    finally:
        lock.release()


def _run(directory: Path, modules: Sequence[str]) -> int:
    (directory / FAILURE).unlink(missing_ok=True)
    try:
        for module in modules:
            importlib.import_module(module)
        config = read_config(directory / CONFIG)
        train(
            config.data, config.method, config.model, config.optimizer, config.trainer,
            seed=config.seed, run=directory, resume=True,
        )  # fmt: skip
    except RunInterruptedError:
        return STOPPED
    except Exception as error:  # any error is recorded and must not stop the other runs
        write_failure(directory, error)
        return FAILED
    return DONE


def _end_with_parent() -> None:
    """Stop the run once the parent's pipe closes.

    The run stops as by SIGTERM. A process that takes too long to write its checkpoint exits without it.
    """
    while os.read(0, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
