"""Exchange of values between the processes of a run."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


def sum_over_processes(trainer: lightning.Trainer, value: Tensor) -> Tensor:
    """The sum of the processes' values."""
    total = trainer.strategy.reduce(value, reduce_op="sum")
    return total if isinstance(total, Tensor) else value


def any_process(trainer: lightning.Trainer, *flags: bool) -> tuple[bool, ...]:
    """The flags, each set if any process sets it."""
    if trainer.world_size == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared.tolist())


def gather(trainer: lightning.Trainer, value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def is_first_process() -> bool:
    """Whether this process writes files and prints.

    In distributed training the first process does.
    """
    return getattr(rank_zero_only, "rank", 0) == 0


def set_rank(rank: int) -> None:
    """Set the rank of this process.

    Before that it is the one of the environment, where RANK may be left from another program.
    """
    vars(rank_zero_only)["rank"] = rank
