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
from pathlib import Path

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


class Command:
    """``bmlr`` as a user starts it."""

    def __init__(self, errors, output=os.devnull):
        self.errors, self.output = Path(errors), Path(output)

    def start(self, arguments):
        with self.errors.open("wb") as errors, self.output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "bmlr", *arguments],
                env=ENVIRONMENT,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        return self.process.pid

    def ended(self, timeout):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        return self.process.poll()


class Forked:
    """The same command in a process that need not import everything first."""

    def __init__(self, server, errors, output=os.devnull):
        self.server, self.errors, self.output = server, Path(errors), Path(output)

    def start(self, arguments):
        request = json.dumps({"arguments": arguments, "errors": str(self.errors), "output": str(self.output)})
        self.server.stdin.write(request.encode() + b"\n")
        self.server.stdin.flush()
        self.code = None
        return int(self.server.stdout.readline())

    def ended(self, timeout):
        if self.code is None and select.select([self.server.stdout], [], [], timeout)[0]:
            self.code = int(self.server.stdout.readline())
        return self.code


@contextlib.contextmanager
def fork_server(*modules):
    """A process for :class:`Forked` that has imported the commands, the toy data set and these modules."""
    script = Path(__file__).with_name("fork_server.py")
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "ignore", str(script), *modules],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def finish(command, arguments, seconds=600):
    """Run a command to its end, which has to be good; how many seconds it took."""
    started = time.monotonic()
    command.start(arguments)
    assert command.ended(seconds) == 0, command.errors.read_text()
    return time.monotonic() - started


def kill_at_random(command, arguments, how, seconds):
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


def chance(how):
    """A source of random moments, another for every signal."""
    return random.Random(int(how))  # noqa: S311
