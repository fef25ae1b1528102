"""Small pieces that several methods share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_integer, check_targets
from bmlr.batch import Batch
from bmlr.model import MultimodalClassifier, Output


def widened(logits: Tensor) -> Tensor:
    """The logits in float32 or wider: losses are not computed in half precision."""
    return logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the classes, shape (B, C), in float32 or wider."""
    return F.log_softmax(widened(logits), dim=1)


@torch.no_grad()
def batch_scores(output: Output, targets: Tensor) -> Tensor:
    """Sum over the batch of each modality's probability of the true class, shape (M,), in the order of sorted names."""
    logits = output.fusion(output.detached_features, unimodal=True)
    scores = []
    for name in sorted(output.features):
        true = log_probabilities(logits[name]).gather(1, targets.long()[:, None]).squeeze(1).exp()
        mask = output.mask(name)
        scores.append(true.sum() if mask is None else torch.where(mask, true, 0.0).sum())
    return torch.stack(scores)


def pair_mask(output: Output, first: str, second: str) -> Tensor | None:
    """The samples that have both modalities, shape (B,); None where all have."""
    masks = [mask for name in (first, second) if (mask := output.mask(name)) is not None]
    return functools.reduce(torch.logical_and, masks) if masks else None


def check_epochs(first_epoch: int, last_epoch: int | None, default_last: int | None = None) -> tuple[int, int | None]:
    """Return the first and the last epoch in which a method acts; None is no end, unless there is a default one.

    Raises:
        ValueError: If it is not a range of epochs.
    """
    check_integer("first_epoch", first_epoch, 0)
    if last_epoch is not None:
        check_integer("last_epoch", last_epoch, first_epoch)
    elif default_last is not None:
        last_epoch = max(default_last, first_epoch)
    return first_epoch, last_epoch


def acts_in(epoch: int, first_epoch: int, last_epoch: int | None) -> bool:
    """Whether ``epoch`` lies between both, which are included."""
    return first_epoch <= epoch and (last_epoch is None or epoch <= last_epoch)


def draw_per_sample(batch_size: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform random numbers in [0, 1) for every sample of a batch, shape (B, columns), on the CPU.

    Under distributed training a generator that is in the same state in every process gives each its rows of the numbers
    of the joined batch, whose samples are dealt to the processes in turn.
    """
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return torch.rand(batch_size * world, columns, generator=generator)[rank::world]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes of a distributed training; the values themselves without one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes of a distributed training; the values themselves without one."""
    summed = all_reduce_sum(values)
    return values if summed is values else summed / torch.distributed.get_world_size()


def check_batch(model: MultimodalClassifier, batch: Batch) -> None:
    """Raise a ValueError unless inputs and targets fit the model; for methods that encode modalities one by one."""
    if batch.inputs.keys() != set(model.encoders):
        raise ValueError(f"`inputs` should have the modalities {list(model.encoders)}. Found {list(batch.inputs)}.")
    check_targets(batch.targets, len(next(iter(batch.inputs.values()))), model.num_classes)


def presence(output: Output, names: Sequence[str] | None = None) -> Tensor:
    """Which sample has which modality, boolean, shape (B, M); columns in the order of ``names`` or of the model."""
    device = next(iter(output.features.values())).device
    everyone = torch.ones(output.batch_size, dtype=torch.bool, device=device)
    return torch.stack(
        [everyone if (mask := output.mask(name)) is None else mask for name in names or output.features], 1
    )


def select(batch: Batch, chosen: Tensor) -> Batch:
    """The samples of a batch where the boolean mask ``chosen``, shape (B,), is True."""
    return Batch(
        {name: x[chosen] for name, x in batch.inputs.items()},
        batch.targets[chosen],
        None if batch.present is None else {name: mask[chosen] for name, mask in batch.present.items()},
        None if batch.indices is None else batch.indices[chosen],
        batch.tag,
    )


def samples_at(batches: Iterable[Batch], indices: Sequence[int]) -> Batch:
    """One batch of the samples at ``indices`` of a split, in the order of the split.

    Raises:
        ValueError: If the batches do not tell their indices, or a sample is not among them.
    """
    wanted, found = torch.tensor(indices), list[Batch]()
    for batch in batches:
        if batch.indices is None:
            raise ValueError("Batches should have `indices` where a method looks for samples. Found None.")
        found.append(select(batch, torch.isin(batch.indices, wanted.to(batch.indices.device))))
        if sum(len(piece) for piece in found) == len(indices):
            present = [piece.present for piece in found if piece.present is not None]
            return Batch(
                {name: torch.cat([piece.inputs[name] for piece in found]) for name in batch.inputs},
                torch.cat([piece.targets for piece in found]),
                {name: torch.cat([masks[name] for masks in present]) for name in present[0]} if present else None,
            )
    raise ValueError(f"The split should hold the samples {list(indices)}. Found {sum(len(piece) for piece in found)}.")
