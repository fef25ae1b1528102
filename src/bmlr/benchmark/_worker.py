"""The processes of a grid's runs.

``python -m bmlr.benchmark._worker`` starts runs: it imports all that a run needs once, reads requests from its standard
input, and forks a process for each. A run so starts in milliseconds, and from a process that has never trained: no run
sees another's random numbers, threads or memory, and one that crashes takes no other with it.

``python -m bmlr.benchmark._worker DIRECTORY [MODULE …]`` is one run, as the other processes of a distributed one are
started.

A run reads ``config.yaml`` from its directory, locks the directory, trains or resumes, and records a failure. Its
standard input is a pipe that nobody writes to. It closes when the process that asked for the run ends, even by SIGKILL;
the run then stops with a checkpoint of its last step.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bmlr.benchmark._jobs import BUSY, DONE, FAILED, STOPPED
from bmlr.benchmark._measure import measure_runs
from bmlr.config import import_user_module, read_config
from bmlr.runs import DirectoryLock, RunInterruptedError, write_failure
from bmlr.runs.layout import CONFIG, FAILURE, LOG
from bmlr.training import train

GRACE = 10.0  # seconds a run gets to write a checkpoint
# Processes of a distributed run inherit this variable: the first of them holds the lock for all.
_LOCKED = "BMLR_RUN_LOCK"
#: Modules that every run imports late.
_PRELOADED = ("torch.utils.tensorboard", "pandas.io.formats.csvs")


def main(arguments: Sequence[str]) -> int:
    """Serve requests for runs, or train the run in a directory; return the exit status."""
    if not arguments:
        return _serve()
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
            import_user_module(module)
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
    time.sleep(GRACE)
    os._exit(STOPPED)


def _serve() -> int:
    """Fork a run for each request, and answer with its number and exit status when it ends."""
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is there is shared with the runs; a collection would copy it
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing that is printed may pass for an answer
    alive = os.pipe()
    ended = os.pipe()
    os.set_blocking(ended[1], False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ended[1])
    numbers: dict[int, int] = {}  # of requests, by process
    pending = b""
    while True:
        ready, _, _ = select.select([0, ended[0]], [], [])
        if ended[0] in ready:
            os.read(ended[0], 512)
        _answer(numbers, answers)
        if 0 not in ready:
            continue
        content = os.read(0, 1 << 16)
        if not content:
            os.close(alive[1])
            return _wait_for_runs(numbers)
        *lines, pending = (pending + content).split(b"\n")
        for line in lines:
            request = json.loads(line)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads at a fork: none holds a lock here
                process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (*ended, answers, alive[1]):
                    os.close(descriptor)
                _end_with(_become, request, alive[0])
            numbers[process] = request["number"]


def _end_with(function: Callable[..., int], *arguments: Any) -> NoReturn:
    """End this process with the result of a function.

    The modules are not taken apart as the interpreter would: they are the server's, and it takes longer than a short
    run.
    """
    code = 1
    try:
        code = function(*arguments)
        atexit._run_exitfuncs()  # noqa: SLF001  (of libraries, such as processes that load data)
    except BaseException:  # as the interpreter would end
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(request: dict[str, Any], alive: int) -> int:
    """Make the run of a request in this process.

    Its environment is as if it had been started for that run alone.
    """
    import torch

    os.setsid()  # an interrupt from the keyboard is for the process that asked, which then ends the runs
    os.dup2(alive, 0)
    directory = Path(request["directory"])
    log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.utime(log)  # tells that the run has begun
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # read by torch when it was imported
        torch.set_num_threads(max(1, int(threads)))
    sys.path[:0] = [path for path in request["paths"] if path not in sys.path]
    sys.argv[1:] = [str(directory), *request["modules"]]
    return measure_runs(directory, request["modules"]) if request["measure"] else main(sys.argv[1:])


def _answer(numbers: dict[int, int], answers: int) -> None:
    """Tell of the runs that have ended."""
    for process in list(numbers):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            answer = {"number": numbers.pop(process), "status": os.waitstatus_to_exitcode(status)}
            with contextlib.suppress(BrokenPipeError):
                os.write(answers, json.dumps(answer).encode() + b"\n")


def _wait_for_runs(numbers: dict[int, int]) -> int:
    """Wait until all runs have stopped; kill those that do not."""
    deadline = time.monotonic() + 1.5 * GRACE
    while numbers and time.monotonic() < deadline:
        for process in list(numbers):
            if os.waitpid(process, os.WNOHANG)[0]:
                del numbers[process]
        time.sleep(0.02)
    for process in numbers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
