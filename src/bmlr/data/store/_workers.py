"""Decode items in worker processes."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bmlr._files import file_checksum
from bmlr.data.readers._base import FileContent, FileReader
from bmlr.data.store._samples import Rejection, SourceSample

_IN_FLIGHT = 4  # samples per worker that may be waiting: bounds memory, keeps all workers busy


def count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_Result = dict[str, tuple[FileContent, dict[str, Any]]] | Rejection


def _read_item(item: SourceSample, readers: Mapping[str, FileReader]) -> _Result:
    """Read the files of one item, in a worker."""
    readings: dict[str, tuple[FileContent, dict[str, Any]]] = {}
    for modality, path in item.files.items():
        try:
            reading = readers[modality](path)
            about = {"name": path.name, "bytes": path.stat().st_size, "sha256": file_checksum(path)}
        except ImportError:
            raise
        except Exception as error:  # one bad file, whatever it does to its decoder, must not end hours of work
            known = isinstance(error, (ValueError, FileNotFoundError))
            return Rejection(item.id, str(path), str(error) if known else f"{type(error).__name__}: {error}")
        readings[modality] = (reading, {**about, "seconds": reading.seconds})
    return readings


def read_results(
    items: Sequence[SourceSample], readers: Mapping[str, FileReader], workers: int
) -> Generator[tuple[SourceSample, _Result]]:
    """The items with what was read, in their order."""
    if not workers:
        for item in items:
            yield item, _read_item(item, readers)
        return
    start = 0
    while start < len(items):  # again after a crash of a decoder, which ends all processes of the pool
        try:
            for item, result in _pooled(items[start:], readers, workers):
                yield item, result
                start += 1
        except BrokenProcessPool:
            _check_start()
            stop = min(start + workers * _IN_FLIGHT, len(items))
            for item in items[start:stop]:  # one of these did it: each in a process of its own
                yield item, _read_alone(item, readers)
            start = stop


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned rather than forked: threads of torch and locks of FFmpeg do not survive a fork.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Leave an interruption to the parent, end with it, and leave the other processors to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(parent: Any) -> None:
    """End this process with its parent: it would wait for work for ever after one that was killed."""
    parent.join()
    os._exit(1)


def _pooled(
    items: Sequence[SourceSample], readers: Mapping[str, FileReader], workers: int
) -> Iterator[tuple[SourceSample, _Result]]:
    pool = _pool(workers)
    try:
        waiting: collections.deque[tuple[SourceSample, Future[_Result]]] = collections.deque()
        coming = iter(items)
        while True:
            while len(waiting) < workers * _IN_FLIGHT and (item := next(coming, None)) is not None:
                waiting.append((item, pool.submit(_read_item, item, dict(readers))))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_start() -> None:
    """Raise unless a worker starts at all: a script that prepares on import starts itself again in every worker."""
    with _pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "The worker processes cannot start. In a script, call this under `if __name__ == '__main__':`, "
                "or pass `workers = 0`."
            ) from error


def _read_alone(item: SourceSample, readers: Mapping[str, FileReader]) -> _Result:
    with _pool(1) as pool:
        try:
            return pool.submit(_read_item, item, dict(readers)).result()
        except BrokenProcessPool:
            file = str(next(iter(item.files.values())))
            return Rejection(item.id, file, "the process that read it crashed or was killed (memory?)")
