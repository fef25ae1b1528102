"""Operations of which the host learns a number."""

from typing import Any

import torch
from torch import Tensor

#: Operations whose result, or its shape, the host waits for.
_WAITS = (
    "_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "_unique", "unique", "repeat_interleave.Tensor",
)  # fmt: skip


def waits_for_device(operation: Any, args: Any) -> bool:
    """Whether the host waits for a result of an operation, or for its shape."""
    name = str(operation).removeprefix("aten.")
    return name.startswith(_WAITS) or _has_mask(name, args)


def reads_or_copies(operation: Any, args: Any) -> bool:
    """Whether the host waits for an operation, or gives it a number of its own."""
    return waits_for_device(operation, args) or str(operation).startswith("aten.lift_fresh")


def _has_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose number of entries the host waits for."""
    if not name.startswith(("index.", "index_put", "_index_put", "_unsafe_index")):
        return False
    return any(isinstance(index, Tensor) and index.dtype in {torch.bool, torch.uint8} for index in args[1])
