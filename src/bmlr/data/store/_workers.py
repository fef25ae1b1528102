"""Decode samples in worker processes; isolate a crashing decoder.

A damaged file can crash its decoder and so end a worker, after which the whole pool is broken, or keep it busy for
ever. The samples that were under way are then decoded one by one, each in a process of its own: the sample at fault is
rejected, the others are kept.
"""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bmlr.data.readers._base import FileContent, FileReader
from bmlr.data.readers._files import describe_source
from bmlr.data.readers._text import describe_text, text_to_bytes
from bmlr.data.store._pieces import Piece, write_piece
from bmlr.data.store._plausibility import as_text
from bmlr.data.store._samples import Fault, Rejection, SourceSample

_IN_FLIGHT = 4  # samples per worker that may be waiting: keeps all workers busy
_MAX_SECONDS = 1800.0  # for a sample; a decoder in an endless loop or a share that hangs would take for ever
_GRACE_SECONDS = 120.0  # to wait beyond that for a worker that starts, or that cannot even end itself
_TOOK_TOO_LONG = 75  # exit status of a worker
# Spawned: threads of torch and locks of FFmpeg do not survive a fork, and the worker would hang.
_CONTEXT = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True)
class DecodeTask:
    """A sample to decode and the path of its piece."""

    sample: SourceSample
    path: Path


Result = Piece | Rejection | Fault


def decode(task: DecodeTask, readers: Mapping[str, FileReader]) -> Result:
    """Read the files of one sample and write its piece.

    A ValueError of a reader is its verdict on the bytes, for which the sample is rejected for good. Whatever else is
    raised may be different the next time.
    """
    contents: dict[str, FileContent] = {}
    files: dict[str, dict[str, Any]] = {}
    for modality, path in task.sample.files.items():
        try:
            content = readers[modality](path, task.sample.interval)
            files[modality] = {**describe_source(path), "name": as_text(path.name)}
        except ImportError:
            raise
        except ValueError as error:
            return Rejection(task.sample.id, str(path), str(error))
        except MemoryError:
            return Fault(task.sample.id, str(path), f"{path}: memory is short. Fewer workers take less")
        except OSError as error:
            return Fault(task.sample.id, str(path), f"{path}: {error.strerror or error}")
        except Exception as error:  # must not end hours of work on other files
            return Fault(task.sample.id, str(path), f"{path}: {type(error).__name__}: {error}")
        if problem := _find_problem(content.values):
            return Rejection(task.sample.id, str(path), f"{modality} {problem}")
        contents[modality] = content
        files[modality]["seconds"] = content.seconds
    for modality, text in task.sample.texts.items():
        contents[modality] = FileContent(text_to_bytes(text))
        files[modality] = {**describe_text(text), "seconds": None}
    return write_piece(task.path, task.sample.id, contents, files)


def _find_problem(values: np.ndarray) -> str | None:
    """Reason why an array cannot be stored, or None."""
    if values.dtype.hasobject:
        return f"holds values of type {values.dtype}, not numbers"
    if not values.size:
        return f"holds no values (shape {values.shape})"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "holds NaN or infinity"
    return None


def decode_all(
    tasks: Sequence[DecodeTask], readers: Mapping[str, FileReader], workers: int
) -> Generator[tuple[DecodeTask, Result]]:
    """Decode tasks in their order.

    Yields:
        Each task with its piece, rejection or fault.
    """
    if not workers:
        for task in tasks:
            yield task, decode(task, readers)
        return
    start = 0
    while start < len(tasks):
        try:
            for task, result in _decode_pooled(tasks[start:], readers, workers):
                yield task, result
                start += 1
        except (BrokenProcessPool, TimeoutError):
            _check_workers_start()
            # The crash or hang was in one of the samples under way. Alone, each tells whether it was the one.
            stop = min(start + workers * _IN_FLIGHT, len(tasks))
            for task in tasks[start:stop]:
                yield task, _decode_alone(task, readers)
            start = stop


def _make_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker)


def _start_worker() -> None:
    """Set up a worker process."""
    # Ctrl-C reaches every process of the terminal. A worker that died of it would look like a crashed decoder.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)  # else every worker takes all processors, and they wait for each other


def _exit_with(parent: Any) -> None:
    """Exit when the parent does.

    After a SIGKILL of the parent, a worker would wait for tasks for ever.
    """
    parent.join()
    os._exit(1)


def _decode_within(seconds: float, task: DecodeTask, readers: Mapping[str, FileReader]) -> Result:
    """Decode a sample in a worker.

    The worker ends itself if that takes too long.
    """
    timer = threading.Timer(seconds, os._exit, (_TOOK_TOO_LONG,))
    timer.daemon = True
    timer.start()
    try:
        return decode(task, readers)
    finally:
        timer.cancel()


def _decode_pooled(
    tasks: Sequence[DecodeTask], readers: Mapping[str, FileReader], workers: int
) -> Iterator[tuple[DecodeTask, Result]]:
    """Decode tasks in a pool.

    Raises:
        BrokenProcessPool: If a worker died.
        TimeoutError: If one takes too long.
    """
    children = set(multiprocessing.active_children())
    pool = _make_pool(workers)
    try:
        waiting: collections.deque[tuple[DecodeTask, Future[Result]]] = collections.deque()
        remaining = iter(tasks)
        while True:
            while len(waiting) < workers * _IN_FLIGHT and (task := next(remaining, None)) is not None:
                waiting.append((task, pool.submit(_decode_within, _MAX_SECONDS, task, dict(readers))))
            if not waiting:
                return
            task, future = waiting.popleft()
            yield task, future.result(_MAX_SECONDS + _GRACE_SECONDS)
    except TimeoutError:
        for process in set(multiprocessing.active_children()) - children:  # the pool's, which would wait for them
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_workers_start() -> None:
    """Raise a ValueError if no worker starts.

    Else every sample would be blamed. A script that prepares on import starts itself again in every worker, which
    Python refuses.
    """
    with _make_pool(1) as pool:
        try:
            pool.submit(os.getpid).result(_GRACE_SECONDS)
        except (BrokenProcessPool, TimeoutError) as error:
            raise ValueError(
                "The worker processes cannot start. In a script, call this under `if __name__ == '__main__':`, "
                "or pass `workers = 0`."
            ) from error


def _decode_alone(task: DecodeTask, readers: Mapping[str, FileReader]) -> Result:
    """Decode a sample in a process of its own.

    The way it ends tells about the file.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_send_result, args=(sender, _MAX_SECONDS, task, dict(readers)))
    process.start()
    sender.close()  # else the end of the process would not close the pipe
    file = str(next(iter(task.sample.files.values()), ""))
    try:
        if not receiver.poll(_MAX_SECONDS + _GRACE_SECONDS):
            raise TimeoutError
        result: Result | ImportError = receiver.recv()
    except (EOFError, TimeoutError) as error:
        if isinstance(error, EOFError):
            process.join()
        if process.exitcode in {None, _TOOK_TOO_LONG}:
            limit = f"{_MAX_SECONDS / 60:.0f} minutes"
            return Fault(task.sample.id, file, f"{file}: reading took more than {limit}. Leave it out if it stays so")
        if process.exitcode == -getattr(signal, "SIGKILL", 9):  # by no decoder, but by the system or a person
            return Fault(task.sample.id, file, f"{file}: the process that read it was killed. Is memory short?")
        return Rejection(task.sample.id, file, "the process that read it crashed")
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(result, ImportError):
        raise result
    return result


def _send_result(sender: Connection, seconds: float, task: DecodeTask, readers: Mapping[str, FileReader]) -> None:
    _start_worker()
    try:
        sender.send(_decode_within(seconds, task, readers))
    except ImportError as error:
        sender.send(error)
