"""Locks, signals and progress of a preparation."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


LOCK = "lock"


@contextlib.contextmanager
def hold_lock(partial: Path) -> Iterator[None]:
    """Hold the folder for this process. The system lets go of it when the process ends, however it ends."""
    with (partial / LOCK).open("w") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows; two preparations at once are the user's to avoid there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is preparing the same data in {partial}. Wait for it to end.") from error
        yield


class _Stopped(BaseException):
    """SIGTERM has come. It is no Exception: the guard around the readers would take that for a fault of a file."""


@contextlib.contextmanager
def exit_on_sigterm(partial: Path) -> Iterator[Callable[[], None]]:
    """Let SIGTERM end the block with a ValueError; yields a check for a signal whose exception a library swallowed."""
    came = threading.Event()

    def stop(*_: Any) -> None:
        came.set()
        raise _Stopped

    def check() -> None:
        if came.is_set():
            raise _Stopped

    caught = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    try:
        if caught:
            signal.signal(signal.SIGTERM, stop)
        yield check
    except _Stopped:
        raise ValueError(
            f"The preparation in {partial} was stopped by SIGTERM. What was read is kept: the same call goes on from "
            "there."
        ) from None
    finally:
        if caught:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def progress_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left; yields what moves it on by one sample."""
    if not enabled or not total:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Estimate

    columns = (
        TextColumn("decoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples, {task.fields[rejected]} rejected,"),
        TimeElapsedColumn(),
        TextColumn("passed,"),
        Estimate(),
        TextColumn("left"),
    )
    bar: Progress
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, rejected=0)
        yield lambda rejected: bar.update(task, advance=1, rejected=rejected)
