"""Loaders of the user's: their size, their samples in order, and batches of chosen samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from bmlr.batch import Batch


def gives_samples(loader: Iterable[Any]) -> TypeGuard[DataLoader[Any]]:
    """Whether samples of a loader can be chosen."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and isinstance(loader.sampler, (RandomSampler, SequentialSampler))
    )


def count_samples(loader: Iterable[Any]) -> int:
    """Number of samples of a split; 0 if unknown.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> count_samples(DataLoader([1, 2, 3])), count_samples([1, 2, 3])
        (3, 0)
    """
    dataset: Any = loader.dataset if gives_samples(loader) else ()
    return len(dataset)


def batches_in_order(loader: Iterable[Any], convert: Callable[[Any], Batch]) -> Iterator[Batch]:
    """Batches of a split in order, with the positions of its samples where they can be known.

    Args:
        loader: Loader of the split.
        convert: Makes a :class:`bmlr.Batch` of what it gives.
    """
    if not gives_samples(loader):
        yield from map(convert, loader)
        return
    chunks = torch.arange(count_samples(loader)).split(loader.batch_size or 1)
    # A generator of its own: a look at the data must not shift the draws of the training.
    yield from _batches_of(loader, chunks, convert, torch.Generator())


def shuffled_batches(loader: Iterable[Any], convert: Callable[[Any], Batch], seed: int) -> Iterator[Batch]:
    """Batches of a split in an order drawn from a seed, or in the loader's own where samples cannot be chosen.

    Args:
        loader: Loader of the split.
        convert: Makes a :class:`bmlr.Batch` of what it gives.
        seed: Seed of the order.

    Example:
        >>> import torch
        >>> from bmlr.batch import as_batch
        >>> from torch.utils.data import DataLoader
        >>> pairs = [({"a": torch.tensor([float(i)])}, i) for i in range(4)]
        >>> batches = shuffled_batches(DataLoader(pairs, 2), as_batch, seed=1)
        >>> sorted(torch.cat([batch.indices for batch in batches]).tolist())
        [0, 1, 2, 3]
    """
    if not gives_samples(loader):
        yield from map(convert, loader)
        return
    generator = torch.Generator().manual_seed(seed)
    chunks = even_chunks(torch.randperm(count_samples(loader), generator=generator), loader.batch_size)
    yield from _batches_of(loader, chunks, convert, generator)


def _batches_of(
    loader: DataLoader[Any], chunks: Sequence[Tensor], convert: Callable[[Any], Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Batches of chosen samples, with their positions in the split."""
    for chunk, given in zip(chunks, sample_loader(loader, chunks, generator), strict=True):
        batch = convert(given)
        yield dataclasses.replace(batch, indices=chunk.to(batch.targets.device))


def even_chunks(indices: Tensor, batch_size: int | None) -> Sequence[Tensor]:
    """Samples of batches of nearly one size: a last one of a single sample could not be normalised."""
    return indices.tensor_split(max(1, round(len(indices) / (batch_size or 1))))


def sample_loader(
    loader: DataLoader[Any], chunks: Sequence[Tensor], generator: torch.Generator | None = None
) -> DataLoader[Any]:
    """Loader of chosen batches, in all else as another loader."""
    return DataLoader(
        loader.dataset,
        batch_sampler=[chunk.tolist() for chunk in chunks],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
    )
