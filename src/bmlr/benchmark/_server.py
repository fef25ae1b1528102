"""The process that starts runs, as engines see it."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from bmlr.runs import RunError

#: Exit status of a run whose server was lost.
_KILLED = -signal.SIGKILL
_GRACE = 20.0  # seconds the server gets to stop its runs, each of which may write a checkpoint


@dataclasses.dataclass(frozen=True)
class Task:
    """Description of a run for the process that makes it.

    Attributes:
        directory: Directory of the run, which holds its ``config.yaml``.
        modules: Modules of the user's own classes.
        paths: Where Python looks for modules.
        folder: Working directory: paths in the configuration may be relative to it.
        measure: Measure the cost of the configurations in folders of ``directory``, in place of a run.
    """

    directory: Path
    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    folder: Path = dataclasses.field(default_factory=Path.cwd)
    measure: bool = False


class RunServer:
    """A process that has imported everything and forks one process per run.

    It ends with this process, and so do its runs, each with a checkpoint.
    """

    def __init__(self) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (it is of the process's life)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bmlr.benchmark._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,  # an interrupt from the keyboard is for this process, which then ends the runs
        )
        self._numbers = itertools.count()
        self.running: dict[int, Task] = {}

    def start(self, task: Task, environment: Mapping[str, str]) -> None:
        """Start a run.

        Args:
            task: The run.
            environment: Variables added to those of this process.
        """
        number = next(self._numbers)
        variables = {**os.environ, **environment}
        if task.paths:
            variables["PYTHONPATH"] = os.pathsep.join(task.paths)
        request = {
            "number": number, "directory": str(task.directory), "modules": task.modules, "paths": task.paths,
            "folder": str(task.folder), "environment": variables, "measure": task.measure,
        }  # fmt: skip
        self.running[number] = task
        with contextlib.suppress(BrokenPipeError):  # `wait` tells of a lost server
            self._stream(self._process.stdin).write(json.dumps(request).encode() + b"\n")

    def wait(self, seconds: float) -> tuple[Task, int] | None:
        """A run that has ended, with its exit status, negative for a signal; None after so many seconds.

        Raises:
            RunError: If the server cannot start.
        """
        answers = self._stream(self._process.stdout)
        if not select.select([answers], [], [], seconds)[0]:
            return None
        if line := answers.readline():
            answer = json.loads(line)
            return self.running.pop(answer["number"]), int(answer["status"])
        if self._process.wait() > 0:
            self._errors.seek(0)
            reason = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RunError(f"The process that starts the runs has ended: {reason}.")
        return self.running.popitem()[1], _KILLED  # it was killed, and its runs stop by themselves

    @property
    def usable(self) -> bool:
        """Whether the server can take another run."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop all runs, which leave checkpoints, and the server."""
        for stream in (self._process.stdin, self._process.stdout):
            self._stream(stream).close()
        if self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        self._process.kill()
        self._process.wait()
        self._errors.close()

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise RunError("The process that starts the runs has no pipe.")
        return stream


_idle: list[RunServer] = []


@atexit.register
def _stop_idle() -> None:
    while _idle:
        _idle.pop().stop()


@contextlib.contextmanager
def borrow_server() -> Iterator[RunServer]:
    """A server for this caller alone, kept for the next one.

    Its runs are stopped if the caller leaves before they have ended.
    """
    server = next((idle for idle in iter(lambda: _idle.pop() if _idle else None, None) if idle.usable), None)
    server = server or RunServer()
    try:
        yield server
    finally:
        if server.running or not server.usable:
            server.stop()
        else:
            _idle.append(server)
