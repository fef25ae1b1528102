"""Loaders and the order of samples.

The order is a pure function of seed, epoch and plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bmlr.batch import Batch
from bmlr.data import Split
from bmlr.methods import EpochPlan
from bmlr.training._termination import ending_signals


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """A batch to be loaded.

    Attributes:
        indices: Positions of its samples in the split.
        seed: Seed of the random transforms; None applies none.
        tag: Tag of its pass.
        fresh_optimizer: Whether to reset the optimiser's state before this batch.
    """

    indices: tuple[int, ...]
    seed: int | None = None
    tag: str = ""
    fresh_optimizer: bool = False


class _RequestDataset(Dataset[Batch]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, request: Any) -> Batch:
        batch = self.split.batch(request.indices, augment=request.seed is not None, seed=request.seed or 0)
        batch.tag = request.tag
        return batch


class RequestLoader:
    """Batches of a split in the order of the requests.

    They are the same on every iteration.

    Args:
        split: Split of the data set.
        requests: The batches to be loaded.
        num_workers: Processes that load data; 0 loads in this process.
        pin_memory: Load into page-locked memory.
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
        start: int = 0,
    ) -> None:
        self.requests = requests
        # A generator of its own: DataLoader draws a seed per iteration, and from the global stream an evaluation
        # between two steps would change the training after it.
        self._loader = DataLoader(
            _RequestDataset(split),
            batch_size=None,
            sampler=requests[start:],  # any sized iterable of keys will do
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=_ignore_ending_signals,
        )

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        with _ending_signals_blocked():
            return iter(self._loader)


def _ignore_ending_signals(_: int) -> None:
    """Ignore ending signals in a worker.

    The training process decides when to stop, and needs its next batch until then.
    """
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _ending_signals_blocked() -> Iterator[None]:
    """Block ending signals while workers start.

    A worker would die of them before it ignores them. Blocked signals reach this process at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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

    Every pass shuffles its samples with a generator seeded by ``seed``, ``epoch`` and its position in the plan. In
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
    requests: list[BatchRequest] = []
    for number, entry in enumerate(plan.passes):
        generator = np.random.default_rng([seed, epoch, number])
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
        requests += [
            BatchRequest(
                tuple(order[start:end][rank::world_size].tolist()),
                seed=transform_seed,
                tag=entry.tag,
                fresh_optimizer=entry.fresh_optimizer and start == 0,
            )
            for start, end in zip(starts, ends, strict=False)
        ]
    if plan.interleave:
        # Seeded by a position that no pass has. Whole batches move, so that each keeps its tag and seed.
        order = np.random.default_rng([seed, epoch, len(plan.passes)]).permutation(len(requests))
        requests = [requests[i] for i in order]
    return requests
