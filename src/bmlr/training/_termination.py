"""A polite end: SIGTERM lets a training reach its next optimiser step and leave a checkpoint there."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bmlr.training._errors import RunInterruptedError


class Termination:
    """Catches SIGTERM while a run is under way; does nothing outside the main thread, where signals cannot be caught.

    While :attr:`training` is set the signal is noted in :attr:`requested`, for the training to look at between its
    steps; a second one ends it at once. Otherwise, while data are prepared or the result is formed, it ends the run at
    once: nothing would be gained by waiting.

    Args:
        directory: Directory of the run, for the message.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requested = False
        self.training = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def install(self) -> None:
        """Catch the signal; again once a trainer has put its own handler in front, which would end within a step."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self.training and not self.requested:
            self.requested = True
            return
        again = "a second SIGTERM" if self.requested else "SIGTERM"
        raise RunInterruptedError(
            f"The run in {self.directory} was stopped by {again}. Continue it with --resume, from its last checkpoint."
        )


class RunWatch(Callback):
    """Begins a training that may be stopped, and tells of processes of it that end before their time.

    Args:
        termination: Where SIGTERM is noted.
        begin: Called when everything is restored, before the first batch.
    """

    def __init__(self, termination: Termination, begin: Callable[[lightning.Trainer], None]) -> None:
        self.termination, self.begin = termination, begin
        self._ended = threading.Event()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin."""
        self.termination.install()
        self.begin(trainer)
        children = list(getattr(trainer.strategy.launcher, "procs", []))
        if children:
            threading.Thread(target=self._watch, args=(children,), daemon=True).start()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching: what ends from now on is ended on purpose."""
        self._ended.set()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self, children: list[Any]) -> None:
        """Say which process ended: the others notice it in their next exchange, but not which it was."""
        while not self._ended.wait(0.2):
            for rank, child in enumerate(children, start=1):
                if code := child.poll():
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    sys.stderr.write(f"bmlr: process {rank} of the run in {self.termination.directory} ended by {how}")
                    sys.stderr.write("; so do the others. Continue the run with --resume.\n")
                    return
