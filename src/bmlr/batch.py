"""Batches of named modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass
class Batch:
    """Inputs of named modalities and their targets.

    Attributes:
        inputs: The input of each modality, first dimension B.
        targets: Class indices, shape (B,), int64.
        present: Presence of each modality, a boolean mask of shape (B,) per name; None or a name left out means that
            all samples have it.
        indices: Position of each sample in its split of the data set, shape (B,), int64; None if unknown.
        tag: Tag of the pass over the data (see :class:`bmlr.methods.Pass`).

    Example:
        >>> import torch, bmlr
        >>> batch = bmlr.Batch({"audio": torch.zeros(2, 4), "text": torch.zeros(2, 3)}, torch.tensor([0, 1]))
        >>> len(batch), batch.to("cpu").targets
        (2, tensor([0, 1]))
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    present: dict[str, Tensor] | None = None
    indices: Tensor | None = None
    tag: str = ""

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Batch:
        """The batch on another device; floating-point inputs as ``dtype`` if given."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            {name: move(x).to(dtype) if x.is_floating_point() else move(x) for name, x in self.inputs.items()},
            move(self.targets),
            None if self.present is None else {name: move(mask) for name, mask in self.present.items()},
            None if self.indices is None else move(self.indices),
            self.tag,
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for copies that overlap with computation."""
        return Batch(
            {name: x.pin_memory() for name, x in self.inputs.items()},
            self.targets.pin_memory(),
            None if self.present is None else {name: mask.pin_memory() for name, mask in self.present.items()},
            None if self.indices is None else self.indices.pin_memory(),
            self.tag,
        )


def as_batch(batch: Any) -> Batch:
    """The batch itself, or the batch of a pair (inputs by modality, targets).

    Raises:
        ValueError: If ``batch`` is neither.
    """
    if isinstance(batch, Batch):
        return batch
    sequence = isinstance(batch, (tuple, list))
    if not (sequence and len(batch) == 2 and isinstance(batch[0], Mapping)):
        contents = f" of {[type(item).__name__ for item in batch]}" if sequence else ""
        raise ValueError(
            "Batches should be bmlr.Batch or pairs (inputs by modality, targets). "
            f"Found {type(batch).__name__}{contents}."
        )
    return Batch(dict(batch[0]), torch.as_tensor(batch[1]))
