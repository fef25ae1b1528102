"""Which samples are seen in which order: a pure function of seed, epoch and plan."""

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
    """One batch to come.

    Attributes:
        indices: Samples of the batch.
        seed: Seed of the random transforms; None applies none.
        tag: Tag of the pass it belongs to.
        fresh_optimizer: The optimiser's state is to be forgotten before this batch.
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
    """Batches of a split in the order of given requests; sized, and the same on every iteration.

    Args:
        split: Where the samples come from.
        requests: The batches to come.
        num_workers: Processes that load data.
        pin_memory: Load into page-locked memory.
        start: Requests at the beginning that are done already and left out; the length counts them all the same.
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
        # A generator of its own: iterating must not draw from the global stream, or an evaluation between two
        # steps would change the training after it.
        self._loader = DataLoader(
            _RequestDataset(split),
            batch_size=None,
            sampler=requests[start:],  # any sized iterable of keys will do
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=_serve_to_the_end,
        )

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        with _signal_held_back():
            return iter(self._loader)


def _serve_to_the_end(_: int) -> None:
    """Let the process that trains decide when to stop: a signal to all must not take away its next batch."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _signal_held_back() -> Iterator[None]:
    """Let no such signal reach processes that are made in here before they can ignore it; this one gets it later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ordered_requests(num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[BatchRequest]:
    """Requests that go through a split once, in order; under distributed evaluation each rank takes its share."""
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

    Every pass shuffles its samples with a generator seeded by ``seed``, ``epoch`` and its place in the plan. Under
    distributed training a global batch of ``world_size * batch_size`` samples is dealt to the ranks in turn; the last
    one is filled up from the beginning of the pass so that all ranks take part in every step. A last batch of a single
    sample is joined to the one before it: batch normalisation cannot train on it.

    Args:
        plan: Passes of the epoch.
        num_samples: Number of training samples.
        batch_size: Samples per batch and rank.
        seed: Seed of the run.
        epoch: Number of the epoch, from zero.
        rank: Which process this is.
        world_size: Number of processes.

    Raises:
        ValueError: If a pass names a sample that does not exist.
    """
    requests: list[BatchRequest] = []
    for number, planned in enumerate(plan.passes):
        generator = np.random.default_rng([seed, epoch, number])
        samples = np.arange(num_samples) if planned.indices is None else np.asarray(planned.indices, dtype=np.int64)
        if len(samples) and not (samples.min() >= 0 and samples.max() < num_samples):
            raise ValueError(
                f"Pass '{planned.tag}' should name samples in [0, {num_samples - 1}]. "
                f"Found values from {samples.min()} to {samples.max()}."
            )
        order = generator.permutation(samples)
        if len(order) and (missing := -len(order) % world_size):
            order = np.concatenate([order, np.resize(order, missing)])
        transform_seed = int(generator.integers(2**62))
        step = batch_size * world_size
        starts = list(range(0, len(order), step))
        if len(starts) > 1 and len(order) - starts[-1] == world_size:
            del starts[-1]  # one sample per rank would be left over, which batch normalisation cannot train on
        ends = [*starts[1:], len(order)]
        requests += [
            BatchRequest(
                tuple(order[start:end][rank::world_size].tolist()),
                seed=transform_seed,
                tag=planned.tag,
                fresh_optimizer=planned.fresh_optimizer and start == 0,
            )
            for start, end in zip(starts, ends, strict=False)
        ]
    if plan.interleave:
        order = np.random.default_rng([seed, epoch, len(plan.passes)]).permutation(len(requests))
        requests = [requests[i] for i in order]
    return requests
