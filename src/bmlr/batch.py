"""Batches of named modalities."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class LateInput(ABC):
    """Input that is finished on the device of the model.

    Until then it travels in the small form in which it is stored.
    """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that travel."""

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> LateInput:
        """The input with a function applied to each of its tensors."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The input of the model, on the device where this one is."""


@dataclasses.dataclass
class Batch:
    """Inputs of named modalities and their targets.

    Attributes:
        inputs: The input of each modality, first dimension B: a tensor, or a dictionary or tuple of tensors for an
            encoder with several, such as ``{"input_ids": ..., "attention_mask": ...}``. A loader for a GPU gives
            :class:`LateInput`, which :meth:`to` finishes there.
        targets: Class indices, shape (B,), int64, or what else the task of the model takes (:mod:`bmlr.tasks`).
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

    inputs: dict[str, Any]
    targets: Tensor
    present: dict[str, Tensor] | None = None
    indices: Tensor | None = None
    tag: str = ""

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Batch:
        """The batch on another device; floating-point inputs as ``dtype`` if given.

        Masks of modalities that all samples have are left out: to look at them on a GPU would wait for it.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        def convert(tensor: Tensor) -> Tensor:
            return move(tensor).to(dtype) if tensor.is_floating_point() else move(tensor)

        def finish(x: Any) -> Any:
            return x.map(move).finish() if isinstance(x, LateInput) else x

        masks = {
            name: mask for name, mask in (self.present or {}).items() if mask.device.type != "cpu" or not mask.all()
        }
        return Batch(
            {name: map_tensors(convert, finish(x)) for name, x in self.inputs.items()},
            move(self.targets),
            {name: move(mask) for name, mask in masks.items()} or None,
            None if self.indices is None else move(self.indices),
            self.tag,
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for copies that overlap with computation."""
        return Batch(
            {
                name: x.map(Tensor.pin_memory) if isinstance(x, LateInput) else map_tensors(Tensor.pin_memory, x)
                for name, x in self.inputs.items()
            },
            self.targets.pin_memory(),
            None if self.present is None else {name: mask.pin_memory() for name, mask in self.present.items()},
            None if self.indices is None else self.indices.pin_memory(),
            self.tag,
        )


def empty_for_batch(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor to be filled.

    On the CPU of a loader's worker it is in shared memory, so that it is handed over without a copy.
    """
    if torch.device(device).type != "cpu" or get_worker_info() is None:
        return torch.empty(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # noqa: SLF001  (as torch's own collate)
    return torch.empty(0, dtype=dtype).set_(storage).view(*shape)


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every tensor of a modality's input.

    Raises:
        ValueError: If the input is neither a tensor nor a dictionary, tuple or list of tensors.

    Example:
        >>> import torch
        >>> map_tensors(len, {"input_ids": torch.zeros(2, 7), "attention_mask": torch.zeros(2, 7)})
        {'input_ids': 2, 'attention_mask': 2}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(function, value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(function, value) for value in inputs)
    raise ValueError(
        "The input of a modality should be a tensor, or a dictionary, tuple or list of tensors. "
        f"Found {type(inputs).__name__}."
    )


def tensors_of(inputs: Any) -> list[Tensor]:
    """Tensors of a modality's input.

    Raises:
        ValueError: As :func:`map_tensors`.
    """
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(collect, inputs)
    return tensors


def named_tensors(inputs: Any, name: str = "") -> dict[str, Tensor]:
    """Tensors of an input by name; those of dictionaries and tuples with dots in their names.

    Args:
        inputs: A tensor, or a dictionary, tuple or list of tensors, nested or not.
        name: Name of the input itself.

    Raises:
        ValueError: As :func:`map_tensors`.

    Example:
        >>> import torch
        >>> list(named_tensors({"image": torch.zeros(2), "text": {"ids": torch.zeros(2), "mask": torch.zeros(2)}}))
        ['image', 'text.ids', 'text.mask']
    """
    if isinstance(inputs, (Mapping, tuple, list)):
        entries = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
        prefix = f"{name}." if name else ""
        return {key: x for k, value in entries for key, x in named_tensors(value, f"{prefix}{k}").items()}
    return {name: tensors_of(inputs)[0]}


def replace_tensors(inputs: Any, tensors: Iterable[Tensor]) -> Any:
    """The input with other tensors, on its device and in its types, in the order of :func:`named_tensors`.

    Example:
        >>> import torch
        >>> replace_tensors({"a": torch.zeros(2), "b": torch.ones(1)}, [torch.ones(2), torch.zeros(1)])
        {'a': tensor([1., 1.]), 'b': tensor([0.])}
    """
    remaining = iter(tensors)
    return map_tensors(lambda x: next(remaining).to(x), inputs)


def input_size(name: str, inputs: Any) -> int:
    """Number of samples B of a modality's input.

    Raises:
        ValueError: If its tensors differ in their first dimension, or there is none.
    """
    # Compared pair by pair: a set of sizes would fix the batch size of an exported model.
    sizes = [tensor.shape[0] if tensor.ndim else 0 for tensor in tensors_of(inputs)]
    if not sizes or any(size != sizes[0] for size in sizes[1:]):
        raise ValueError(f"The tensors of `inputs['{name}']` should have one first dimension. Found {sizes}.")
    return sizes[0]


def concatenate_inputs(pieces: Sequence[Any]) -> Any:
    """Join inputs of one modality along the samples."""
    first = pieces[0]
    if isinstance(first, Mapping):
        return {name: concatenate_inputs([piece[name] for piece in pieces]) for name in first}
    if isinstance(first, tuple):
        return tuple(concatenate_inputs(columns) for columns in zip(*pieces, strict=True))
    return torch.cat(list(pieces))


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
            "Batches should be bmlr.Batch or pairs (inputs by modality, targets): have the data set return "
            '({"audio": ..., "text": ...}, target). '
            f"Found {type(batch).__name__}{contents}."
        )
    return Batch(dict(batch[0]), torch.as_tensor(batch[1]))
