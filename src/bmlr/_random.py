"""Random generators of torch, NumPy and Python: their state, and seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture_random_state(*, gpus: bool = True) -> dict[str, Any]:
    """State of all generators, in types that ``torch.load(weights_only=True)`` reads.

    Without ``gpus`` those of GPUs are left out: a process that loads data must not touch them. Words are one tensor:
    ``torch.save`` visits every number of a list.

    Lightning's ``isolate_rng`` collects the same, but its NumPy arrays make a checkpoint that only an unsafe load
    reads, and it needs the ``train`` extra.
    """
    kind, keys, *position = np.random.get_state()  # noqa: NPY002  (the legacy stream is the one user code draws from)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if gpus and torch.cuda.is_available() else [],
        "numpy": [kind, torch.tensor(np.asarray(keys, dtype=np.int64)), *position],
        "python": [version, torch.tensor(words), gauss],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the state of :func:`capture_random_state`.

    GPU generators are restored only on a machine with as many GPUs.
    """
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *position))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


@contextmanager
def preserved_random_state(*, gpus: bool = True) -> Iterator[None]:
    """Restore the state of all generators on exit; see :func:`capture_random_state`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> with preserved_random_state():
        ...     inside = torch.rand(3)
        >>> bool((torch.rand(3) == inside).all())
        True
    """
    state = capture_random_state(gpus=gpus)
    try:
        yield
    finally:
        restore_random_state(state)


def mixed_seed(*numbers: int) -> int:
    """Seed that depends on all the numbers, in [0, 2⁶³).

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(0, 1), mixed_seed(0, 1) == mixed_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
