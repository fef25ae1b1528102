"""Commands of ``bmlr`` in processes of their own, to be killed."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
#: What a training command imports once it is called: seconds each time, if the server has not.
TRAINING = ("bmlr.commands.train", "bmlr.training", "jsonargparse", "torch.utils.tensorboard")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """Let a process that is started meanwhile heed Ctrl-C.

    A suite that was started in the background hands on that it is ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Command:
    """``bmlr`` as a user starts it."""

    def __init__(self, errors: str | Path, output: str | Path = os.devnull) -> None:
        self.errors, self.output = Path(errors), Path(output)

    def start(self, arguments: Sequence[str]) -> int:
        with heeding_ctrl_c(), self.errors.open("wb") as errors, self.output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "bmlr", *arguments],
                env=ENVIRONMENT,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        return self.process.pid

    def ended(self, timeout: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        return self.process.poll()


class Forked:
    """The same command in a process that need not import everything first."""

    def __init__(self, server: subprocess.Popen[bytes], errors: str | Path, output: str | Path = os.devnull) -> None:
        self.errors, self.output = Path(errors), Path(output)
        self.requests, self.answers = pipes(server)

    def start(self, arguments: Sequence[str]) -> int:
        request = json.dumps({"arguments": arguments, "errors": str(self.errors), "output": str(self.output)})
        self.requests.write(request.encode() + b"\n")
        self.requests.flush()
        self.code: int | None = None
        return int(self.answers.readline())

    def ended(self, timeout: float) -> int | None:
        if self.code is None and select.select([self.answers], [], [], timeout)[0]:
            self.code = int(self.answers.readline())
        return self.code


def pipes(server: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Where a server reads its requests and writes its answers."""
    assert server.stdin is not None
    assert server.stdout is not None
    return server.stdin, server.stdout


@contextlib.contextmanager
def fork_server(*modules: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process for :class:`Forked` that has imported the toy data set and these modules."""
    script = Path(__file__).with_name("fork_server.py")
    with heeding_ctrl_c():
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore", str(script), *modules],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
    with server as process:
        requests, answers = pipes(process)
        assert answers.readline() == b"ready\n"
        yield process
        requests.close()


def finish(command: Command | Forked, arguments: Sequence[str], seconds: float = 600) -> float:
    """Run a command to its end, which has to be good; how many seconds it took."""
    started = time.monotonic()
    command.start(arguments)
    assert command.ended(seconds) == 0, command.errors.read_text()
    return time.monotonic() - started


def kill_at_random(
    command: Command | Forked, arguments: Sequence[str], how: signal.Signals, seconds: float
) -> tuple[int | None, bool]:
    """Start a command and signal it and its group after so many seconds; its exit status, and if it was there still."""
    process = command.start(arguments)
    if command.ended(seconds) is not None:
        return command.ended(0), False
    os.killpg(process, how)
    code = command.ended(120)
    assert code is not None, "The process did not end."
    errors = command.errors.read_text()
    assert "Traceback" not in errors, errors
    if how == signal.SIGKILL:
        assert code in {0, -how}
    return code, code != 0


def chance(how: signal.Signals) -> random.Random:
    """A source of random moments, another for every signal."""
    return random.Random(int(how))  # noqa: S311
