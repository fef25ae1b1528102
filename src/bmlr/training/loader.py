"""Loaders and the order of samples.

The order is a pure function of seed, epoch and plan.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import multiprocessing
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from torch.utils.data._utils.worker import _worker_loop

from bmlr.batch import Batch
from bmlr.data import Split
from bmlr.methods import EpochPlan
from bmlr.runs import RunError
from bmlr.tables import format_count
from bmlr.training._termination import ending_signals, heeded_signals

#: Seconds after which a worker that gives no batch counts as hanging.
TIMEOUT = 600
_LOADED_AHEAD = 2  # batches per worker, torch's default
_SEMAPHORES = 65_536  # bytes of the queues' locks, which lie in shared memory too
_MORE_SHARED_MEMORY = "Say --trainer.num_workers 0, or give more (docker run --shm-size=2g)."


class LoadingError(RunError):
    """A process that loads data ended or hangs."""


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """A batch to be loaded.

    Attributes:
        indices: Positions of its samples in the split.
        seed: Seed of the random transforms; None applies none.
        tag: Tag of its pass.
        fresh_optimizer: Whether to reset the optimiser's state before this batch.
        ends_pass: Whether no optimiser step may go beyond this batch.
    """

    indices: tuple[int, ...]
    seed: int | None = None
    tag: str = ""
    fresh_optimizer: bool = False
    ends_pass: bool = False


class _RequestDataset(Dataset[Batch]):
    def __init__(self, split: Split, *, late: bool) -> None:
        self._load = split.late_batch if late else split.batch

    def __getitem__(self, request: Any) -> Batch:
        return self._load(request.indices, augment=request.seed is not None, seed=request.seed or 0)


class RequestLoader:
    """Batches of a split in the order of the requests.

    They are the same on every iteration. Requests of the same samples one after another, as those of aligned passes,
    share one batch, which is loaded once.

    Args:
        split: Split of the data set.
        requests: The batches to be loaded.
        num_workers: Processes that load data; 0 loads in this process.
        pin_memory: Load into page-locked memory.
        late: Leave inputs in the small form in which they are stored, to be finished on a GPU by :meth:`bmlr.Batch.to`.
        start: Number of requests to leave out at the beginning; ``len`` counts them all the same, as Lightning
            counts the batches of a resumed epoch.
    """

    def __init__(
        self,
        split: Split,
        requests: Sequence[BatchRequest],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        late: bool = False,
        start: int = 0,
    ) -> None:
        self.requests = requests
        #: Requests of one loaded batch each.
        self._groups = [list(same) for _, same in itertools.groupby(requests[start:], lambda r: (r.indices, r.seed))]
        # A generator of its own: DataLoader draws a seed per iteration, and from the global stream an evaluation
        # between two steps would change the training after it.
        self._dataset = _RequestDataset(split, late=late)
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=[same[0] for same in self._groups],  # any sized iterable of keys will do
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=TIMEOUT if num_workers else 0,  # a worker that hangs would be waited for without end
            generator=torch.Generator(),
            worker_init_fn=_ignore_ending_signals,
        )

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        """Load the batches.

        Raises:
            LoadingError: If a process that loads data ended or hangs.
        """
        workers = self._loader.num_workers
        if workers and len(self._loader):
            _renew_watch_over_workers()
            _check_shared_memory(self._dataset[next(iter(self._loader.sampler))], workers)
        iterator: Any = None
        try:
            with _ending_signals_held():
                iterator = iter(self._loader)
            for batch, same in zip(iterator, self._groups, strict=True):
                for request in same:
                    yield dataclasses.replace(batch, tag=request.tag)
        except (OSError, RuntimeError) as error:
            ends = {worker.exitcode for worker in getattr(iterator, "_workers", ())}
            if message := _describe_failure(str(error), ends):
                raise LoadingError(message) from error
            raise


def _check_shared_memory(batch: Batch, workers: int) -> None:
    """Raise a LoadingError if the batches that workers load ahead do not fit into shared memory.

    A worker cannot hand over such a batch, and this process would wait for it.
    """
    folder = Path("/dev/shm")  # noqa: S108  (where Linux has it)
    if not folder.is_dir():
        return
    size = sum(x.nbytes for x in (*batch.inputs.values(), batch.targets))
    needed, free = size * workers * _LOADED_AHEAD, shutil.disk_usage(folder).free
    if free < needed + _SEMAPHORES:
        need = format_count(workers, "process that loads data needs", "processes that load data need")
        raise LoadingError(
            f"{need} about {_megabytes(needed)} of shared memory, and /dev/shm has {_megabytes(free)}. "
            f"{_MORE_SHARED_MEMORY}"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _describe_failure(text: str, ends: set[int | None]) -> str | None:
    """What became of the processes that load data, as a sentence; None for an error of another kind.

    Args:
        text: Message of the error.
        ends: Exit codes of the processes, which the message does not always tell.
    """
    if text.startswith("DataLoader timed out"):
        return (
            f"No data arrived within {TIMEOUT} s: a process that loads data hangs, or the disk or share of the data "
            "does not answer."
        )
    if re.search(r"shared memory|Bus error", text) or -getattr(signal, "SIGBUS", 0) in ends:
        return f"The processes that load data ran out of shared memory (/dev/shm). {_MORE_SHARED_MEMORY}"
    if "Too many open files" in text:
        return "The processes that load data opened too many files. Say --trainer.num_workers 0, or raise ulimit -n."
    if text.startswith("DataLoader worker"):
        remedy = (
            " Memory may have been short: have fewer --trainer.num_workers."
            if -getattr(signal, "SIGKILL", 0) in ends
            else ""
        )
        return f"A process that loads data ended: {text.partition('. ')[0].rstrip('.')}.{remedy}"
    return None


@atexit.register
def _kill_workers() -> None:
    """End the workers that are left over after an error.

    Python would wait for them at its end, and they ignore the SIGTERM by which it tries to end them.
    """
    for process in multiprocessing.active_children():
        if getattr(process, "_target", None) is _worker_loop:
            process.kill()


def _renew_watch_over_workers() -> None:
    """Let PyTorch watch over its workers again, where something has taken its handler of SIGCHLD away.

    PyTorch installs it once in a process, and Lightning puts back at the end of a run the handlers of its beginning: in
    the next run a worker that died would be noticed after :data:`TIMEOUT` only.
    """
    child_signal = getattr(signal, "SIGCHLD", None)
    if child_signal is not None and not callable(signal.getsignal(child_signal)):
        signal_handling._SIGCHLD_handler_set = False  # noqa: SLF001


def _ignore_ending_signals(_: int) -> None:
    """Ignore ending signals in a worker.

    The training process decides when to stop, and needs its next batch until then.
    """
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _ending_signals_held() -> Iterator[None]:
    """Hold ending signals back while workers start.

    A worker would die of them before it ignores them. In this process a handler that raises could be running between
    the halves of a fork, where Python prints the exception and forgets it. They are raised again at the end.
    """
    held: list[int] = []
    before = {number: handler for number, handler in heeded_signals().items() if handler is not None}
    # Blocked too, which workers inherit; alone it is not enough, since other threads receive what this one blocks.
    has_mask = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals()) if has_mask else set()
    try:
        for number in before:
            signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        if has_mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)


def ordered_requests(num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[BatchRequest]:
    """Requests for one pass over a split in order.

    In distributed evaluation each rank takes every N-th sample.
    """
    indices = range(num_samples)[rank::world_size]
    return [BatchRequest(tuple(indices[start : start + batch_size])) for start in range(0, len(indices), batch_size)]


def planned_requests(
    plan: EpochPlan,
    num_samples: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[BatchRequest]:
    """Requests of one epoch of training.

    Every pass shuffles its samples with a generator seeded by ``seed``, ``epoch`` and its position in the plan;
    aligned passes take the position of the first, so that their batches and random transforms are the same. In
    distributed training a global batch of ``world_size * batch_size`` samples is dealt to the ranks in turn; the last
    one is filled up from the beginning of the pass, so that all ranks take part in every step. A last batch of a
    single sample is joined to the one before it: batch normalisation cannot train on it.

    Args:
        plan: Passes of the epoch.
        num_samples: Number of training samples.
        batch_size: Samples per batch and rank.
        seed: Seed of the run.
        epoch: Number of the epoch, from zero.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If a pass names a sample that does not exist.
    """
    by_pass: list[list[BatchRequest]] = []
    for number, entry in enumerate(plan.passes):
        generator = np.random.default_rng([seed, epoch, 0 if plan.order == "aligned" else number])
        samples = np.arange(num_samples) if entry.indices is None else np.asarray(entry.indices, dtype=np.int64)
        if len(samples) and not (samples.min() >= 0 and samples.max() < num_samples):
            raise ValueError(
                f"Pass '{entry.tag}' should name samples in [0, {num_samples - 1}]. "
                f"Found values from {samples.min()} to {samples.max()}."
            )
        # All of a pass is drawn from one generator in a fixed order. Nothing depends on batches or ranks that are
        # done already, so a resumed epoch sees the same batches.
        order = generator.permutation(samples)
        if len(order) and (missing := -len(order) % world_size):
            order = np.concatenate([order, np.resize(order, missing)])  # a rank short of a batch would deadlock
        transform_seed = int(generator.integers(2**62))
        step = batch_size * world_size
        starts = list(range(0, len(order), step))
        if len(starts) > 1 and len(order) - starts[-1] == world_size:
            del starts[-1]  # one sample per rank is left over, and batch normalisation cannot train on one
        ends = [*starts[1:], len(order)]
        by_pass.append(
            [
                BatchRequest(
                    tuple(order[start:end][rank::world_size].tolist()),
                    seed=transform_seed,
                    tag=entry.tag,
                    fresh_optimizer=entry.fresh_optimizer and start == 0,
                    ends_pass=plan.order == "sequential" and end == len(order),
                )
                for start, end in zip(starts, ends, strict=False)
            ]
        )
    if plan.order == "aligned":
        return [request for same_batch in zip(*by_pass, strict=True) for request in same_batch]
    requests = [request for of_pass in by_pass for request in of_pass]
    if plan.order == "shuffled":
        # Seeded by a position that no pass has. Whole batches move, so that each keeps its tag and seed.
        order = np.random.default_rng([seed, epoch, len(plan.passes)]).permutation(len(requests))
        requests = [requests[i] for i in order]
    return requests
