"""Threads of a training process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn

from bmlr._processors import count_processors
from bmlr.config import TrainerOptions

#: Parameters below which one thread is the fastest or nearly so (docs/performance.md).
_SMALL = 1_000_000
#: More threads than this gain little for batches of usual size.
_MOST = 8


def choose_threads(options: TrainerOptions, module: nn.Module, processes: int = 1) -> int:
    """Number of threads that compute in a training process.

    It is the option where that is given, then ``OMP_NUM_THREADS``. Else small models get one thread: they gain nothing
    by more, and on a machine that others use threads wait for each other many times as long as they compute. Large ones
    get the processors that loader workers and the other processes of the run leave.

    Args:
        options: Options of the trainer.
        module: The module that is trained.
        processes: Processes of the run on this machine.
    """
    if options.threads is not None:
        return options.threads
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return torch.get_num_threads()
    if sum(parameter.numel() for parameter in module.parameters()) < _SMALL:
        return 1
    return max(1, min(_MOST, count_processors() // processes - options.num_workers))


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Put the number of threads of this process back on exit."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
