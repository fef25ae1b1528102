"""Decode samples in worker processes; isolate a crashing decoder.

A damaged file can crash its decoder and so end a worker, after which the whole pool is broken. The samples that were
under way are then decoded one by one, each in a process of its own: the sample at fault is rejected, the others are
kept.
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
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._files import file_checksum
from bmlr.data.readers._base import FileContent, FileReader
from bmlr.data.store._pieces import Piece, write_piece
from bmlr.data.store._plausibility import as_text
from bmlr.data.store._samples import Rejection, SourceSample

_IN_FLIGHT = 4  # samples per worker that may be waiting: keeps all workers busy


@dataclasses.dataclass(frozen=True)
class DecodeTask:
    """A sample to decode and the path of its piece."""

    sample: SourceSample
    path: Path


def decode(task: DecodeTask, readers: Mapping[str, FileReader]) -> Piece | Rejection:
    """Read the files of one sample and write its piece."""
    contents: dict[str, FileContent] = {}
    files: dict[str, dict[str, Any]] = {}
    for modality, path in task.sample.files.items():
        try:
            content = readers[modality](path)
            files[modality] = {"name": as_text(path.name), "bytes": path.stat().st_size, "sha256": file_checksum(path)}
        except ImportError:
            raise
        except Exception as error:  # one bad file, whatever its decoder raises, must not end hours of work
            expected = isinstance(error, (ValueError, FileNotFoundError))
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            return Rejection(task.sample.id, str(path), reason)
        if problem := _find_problem(content.values):
            return Rejection(task.sample.id, str(path), f"{modality} {problem}")
        contents[modality] = content
        files[modality]["seconds"] = content.seconds
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
) -> Generator[tuple[DecodeTask, Piece | Rejection]]:
    """Decode tasks in their order.

    Yields:
        Each task with its piece or rejection.
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
        except BrokenProcessPool:
            _check_workers_start()
            # The crash was in one of the samples under way. Alone, each tells whether it was the one.
            stop = min(start + workers * _IN_FLIGHT, len(tasks))
            for task in tasks[start:stop]:
                yield task, _decode_alone(task, readers)
            start = stop


def _make_pool(workers: int) -> ProcessPoolExecutor:
    # Spawned: threads of torch and locks of FFmpeg do not survive a fork, and the worker would hang.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


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


def _decode_pooled(
    tasks: Sequence[DecodeTask], readers: Mapping[str, FileReader], workers: int
) -> Iterator[tuple[DecodeTask, Piece | Rejection]]:
    pool = _make_pool(workers)
    try:
        waiting: collections.deque[tuple[DecodeTask, Future[Piece | Rejection]]] = collections.deque()
        remaining = iter(tasks)
        while True:
            while len(waiting) < workers * _IN_FLIGHT and (task := next(remaining, None)) is not None:
                waiting.append((task, pool.submit(decode, task, dict(readers))))
            if not waiting:
                return
            task, future = waiting.popleft()
            yield task, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_workers_start() -> None:
    """Raise a ValueError if no worker starts.

    Else every sample would be blamed. A script that prepares on import starts itself again in every worker, which
    Python refuses.
    """
    with _make_pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "The worker processes cannot start. In a script, call this under `if __name__ == '__main__':`, "
                "or pass `workers = 0`."
            ) from error


def _decode_alone(task: DecodeTask, readers: Mapping[str, FileReader]) -> Piece | Rejection:
    with _make_pool(1) as pool:
        try:
            return pool.submit(decode, task, dict(readers)).result()
        except BrokenProcessPool:
            file = str(next(iter(task.sample.files.values())))
            return Rejection(task.sample.id, file, "the process that read it crashed or was killed (memory?)")
