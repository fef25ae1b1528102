"""A polite end: SIGTERM lets a training reach its next optimiser step and leave a checkpoint there."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bmlr.runs import RunInterruptedError


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, and under SLURM the signal it announces the end of a job's time with.

    Lightning would save a checkpoint within its own handler of that, where the processes of a run wait for each other
    for ever.
    """
    announced = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1") else []
    return [signal.SIGTERM, *announced]


class Termination:
    """Catches SIGTERM, and SIGUSR1 under SLURM, while a run is under way.

    It does nothing outside the main thread, where signals cannot be caught.

    While :attr:`patient` is set the signal is noted in :attr:`requested`, for the training to look at between its
    steps; a second one ends it at once. Otherwise, while data are prepared, it ends the run at once: nothing would be
    gained by waiting.

    Args:
        directory: Directory of the run, for the message.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requested = False
        self.patient = False
        self.received = "SIGTERM"  # also where another process of the run got the signal
        self._signals = ending_signals()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in self._signals}
            self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)

    def install(self) -> None:
        """Catch the signal; again once a trainer has put its own handler in front, which would end within a step."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise a RunInterruptedError if the signal has come."""
        if self.requested:
            raise self._interrupted(self.received)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.patient and not self.requested:
            self.requested = True
            return
        again, self.requested = self.requested, True
        raise self._interrupted(f"a second {self.received}" if again else self.received)

    def _interrupted(self, what: str) -> RunInterruptedError:
        return RunInterruptedError(
            f"The run in {self.directory} was stopped by {what}. Continue it with --resume, from its last checkpoint."
        )


class RunWatch(Callback):
    """Begins a training that may be stopped, and tells of processes of it that end before their time.

    Args:
        termination: Where SIGTERM is noted.
    """

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        self._children: list[Any] = []
        self._ended = threading.Event()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin."""
        self.termination.install()
        self._children = list(getattr(trainer.strategy.launcher, "procs", []))
        if self._children:
            threading.Thread(target=self._watch, daemon=True).start()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching: what ends from now on is ended on purpose. But what broke an exchange may have just ended."""
        if isinstance(exception, RuntimeError) and not isinstance(exception, RunInterruptedError):
            self._ended.wait(1.0 if self._children else 0.0)
        self._ended.set()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        """Say which process ended: the others notice it in their next exchange, but not which it was."""
        while not self._ended.wait(0.2):
            for rank, child in enumerate(self._children, start=1):
                if code := child.poll():
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    sys.stderr.write(
                        f"bmlr: process {rank} of the run in {self.termination.directory} ended by {how}; so do the "
                        "others. Continue the run with --resume.\n"
                    )
                    self._ended.set()
                    return
