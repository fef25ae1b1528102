"""Lock, SIGTERM and progress bar of a preparation."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import filelock

from bmlr._console import make_console

if TYPE_CHECKING:
    from rich.progress import Progress

LOCK = "lock"
HOLDER = "holder"  # text file beside the lock: who holds it


@contextlib.contextmanager
def hold_lock(partial: Path) -> Iterator[None]:
    """Lock the folder of a preparation for this process.

    Raises:
        ValueError: If another process holds it.
    """
    lock = filelock.FileLock(partial / LOCK, timeout=0)
    holder = partial / HOLDER
    try:
        lock.acquire()
    except filelock.Timeout as error:
        try:
            words = f" ({holder.read_text(encoding='utf-8')})"
        except OSError:
            words = ""
        raise ValueError(
            f"Another process{words} is preparing the same data in {partial}. Wait for it to end, or stop it; the same "
            "command goes on from there."
        ) from error
    try:
        with contextlib.suppress(OSError):
            started = dt.datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


class _Stopped(BaseException):
    """SIGTERM was received.

    No Exception: a decoder's or reader's ``except Exception`` would take it for a fault of the file.
    """


@contextlib.contextmanager
def exit_on_sigterm(partial: Path) -> Iterator[Callable[[], None]]:
    """Turn SIGTERM into a ValueError: progress is kept.

    Nothing else depends on the handler: pieces are written atomically. A handler of the program's own stays.

    Yields:
        A function that raises if SIGTERM was received, for libraries that swallow every exception.
    """
    received = threading.Event()

    def stop(_: int, frame: FrameType | None) -> None:
        received.set()
        if not _would_be_swallowed(frame):
            raise _Stopped

    def check() -> None:
        if received.is_set():
            raise _Stopped

    in_main_thread = threading.current_thread() is threading.main_thread()
    handled = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        if handled:
            signal.signal(signal.SIGTERM, stop)
        yield check
    except _Stopped:
        raise ValueError(
            f"The preparation in {partial} was stopped by SIGTERM. What was read is kept: the same call goes on from "
            "there."
        ) from None
    finally:
        if handled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _would_be_swallowed(frame: FrameType | None) -> bool:
    """Whether what is raised now is printed and forgotten: in a finaliser, or where libsndfile may wait for Python.

    libsndfile takes the file for shorter then.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") == "soundfile":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def progress_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with the time left.

    Yields:
        A function that advances the bar by one sample, called with the number of rejected ones.
    """
    if not enabled or not total:
        yield lambda _: None
        return
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
    with Progress(*columns, console=make_console(stderr=True)) as bar:
        task = bar.add_task("", total=total, rejected=0)
        yield lambda rejected: bar.update(task, advance=1, rejected=rejected)
