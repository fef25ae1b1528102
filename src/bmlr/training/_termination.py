"""Handling of signals and lost processes.

A run stops after its current step, with a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bmlr.runs import RunInterruptedError
from bmlr.runs.layout import CHECKPOINT
from bmlr.training._processes import is_first_process

_CTRL_C = "Ctrl-C"


def ending_signals() -> list[signal.Signals]:
    """Signals at which a run stops: SIGINT, SIGTERM, under SLURM also SIGUSR1.

    SLURM announces the end of a job's time by SIGUSR1. Lightning's SIGUSR1 handler saves a checkpoint, which deadlocks
    distributed runs; we handle it ourselves.
    """
    announced = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1") else []
    return [signal.SIGINT, signal.SIGTERM, *announced]


def heeded_signals() -> dict[signal.Signals, Any]:
    """Ending signals with their handlers, None for one that Python did not install; without those that are ignored.

    A shell script starts ``command &`` with SIGINT ignored, so that Ctrl-C is for the script alone. Outside the main
    thread, where Python cannot handle signals, there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in ending_signals()}
    return {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}


class _StoppedAtOnceError(BaseException):
    """A signal stopped the run between two steps or at an arbitrary place.

    No Exception: a decoder's ``except Exception`` would take it for a fault of the file.
    """


class Termination:
    """Handler of the ending signals during a run.

    Outside the main thread, where Python cannot handle signals, it does nothing. A run that Ctrl-C stopped leaves as a
    KeyboardInterrupt with a message, a run stopped otherwise as a RunInterruptedError.

    Args:
        directory: Directory of the run, for the message.

    Attributes:
        deferred: Whether a first signal only sets :attr:`requested`, for the training to check after each step. While
            data are prepared it is False, and the run stops at once: waiting would save nothing. A second signal
            always stops it at once.
        requested: Whether a signal has come.
        signal_name: Name of the last signal, Ctrl-C for SIGINT; SIGTERM where only another process received one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requested = False
        self.deferred = False
        self.signal_name = "SIGTERM"
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Termination:
        self._before = heeded_signals()
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        if not isinstance(error, _StoppedAtOnceError | RunInterruptedError):
            return
        if self.signal_name == _CTRL_C:
            raise KeyboardInterrupt(str(error)) from error
        if isinstance(error, _StoppedAtOnceError):
            raise RunInterruptedError(str(error)) from error

    def install(self) -> None:
        """Install the handlers.

        Called again once training starts: Lightning installs its own, which would stop the run within a step, after
        which no bit-exact resume is possible.
        """
        for number in self._before:
            signal.signal(number, self._handle)

    def raise_if_requested(self) -> None:
        """Stop the run if a signal has come."""
        if self.requested:
            raise self._stopped(self.signal_name)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal_name = _CTRL_C if number == signal.SIGINT else signal.Signals(number).name
        if self.deferred and not self.requested:
            self.requested = True
            if number == signal.SIGINT and is_first_process():
                # Not by `print`, which may be under way: its buffer cannot be entered twice.
                os.write(2, b"\nbmlr: stopping after this step, with a checkpoint; Ctrl-C again stops at once.\n")
            return
        is_second, self.requested = self.requested, True
        raise self._stopped(f"a second {self.signal_name}" if is_second else self.signal_name)

    def _stopped(self, cause: str) -> _StoppedAtOnceError:
        if (self.directory / CHECKPOINT).exists():
            remedy = "Continue it with --resume, from its last checkpoint."
        else:
            remedy = "It has no checkpoint yet: the same command starts it again."
        return _StoppedAtOnceError(f"The run in {self.directory} was stopped by {cause}. {remedy}")


class RunWatch(Callback):
    """Signal handlers during training, and a watch over child processes.

    A message says which process ended too early: the others notice a lost peer in their next exchange only, and not
    which one it was.

    Args:
        termination: Handler of the signals.
    """

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        self._children: list[Any] = []
        self._stop_watching = threading.Event()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Install the handlers and watch the child processes."""
        self.termination.install()
        self._children = list(getattr(trainer.strategy.launcher, "procs", []))
        if self._children:
            threading.Thread(target=self._watch, daemon=True).start()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching children.

        After a communication error wait 1 s, so that the dead child is still reported. Children that end later are
        ended on purpose, by the launcher.
        """
        if isinstance(exception, RuntimeError) and not isinstance(exception, RunInterruptedError):
            self._stop_watching.wait(1.0 if self._children else 0.0)
        self._stop_watching.set()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop watching."""
        self._stop_watching.set()

    def _watch(self) -> None:
        """Print the first child process to end."""
        while not self._stop_watching.wait(0.2):
            for rank, child in enumerate(self._children, start=1):
                if code := child.poll():
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    sys.stderr.write(
                        f"bmlr: process {rank} of the run in {self.termination.directory} ended by {how}; so do the "
                        "others. Continue the run with --resume.\n"
                    )
                    self._stop_watching.set()
                    return
