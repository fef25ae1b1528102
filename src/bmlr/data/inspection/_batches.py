"""Samples drawn from a split, and their batches checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bmlr.batch import Batch
from bmlr.data._base import MultimodalData, Split, SplitName
from bmlr.data.store._store import Store

_BATCH_SIZE = 32  # samples in memory at a time


def draw_indices(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Up to ``count`` positions drawn at random, in ascending order."""
    if len(positions) <= count:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, count, replace=False))


def iterate_batches(data: MultimodalData, name: SplitName, split: Split, positions: np.ndarray) -> Iterator[Batch]:
    """Batches of a split, checked against :class:`bmlr.data.Split`."""
    for start in range(0, len(positions), _BATCH_SIZE):
        indices = positions[start : start + _BATCH_SIZE].tolist()
        batch = split.batch(indices)
        where = f"Split '{name}' of '{data.name}'"
        if set(batch.inputs) != set(data.modalities):
            raise ValueError(f"{where} should give {list(data.modalities)}. Found {list(batch.inputs)}.")
        for modality, values in batch.inputs.items():
            if len(values) != len(indices):
                raise ValueError(f"{where} should give {len(indices)} of '{modality}' as asked. Found {len(values)}.")
        if not torch.equal(batch.targets, split.targets[indices]):
            raise ValueError(f"{where} gives other targets in a batch than its `targets` at the same positions.")
        for modality, form in data.modalities.items():
            shape, fixed = tuple(batch.inputs[modality].shape[1:]), int(form.kind in {"sequence", "frames", "text"})
            if len(shape) != len(form.shape) or shape[fixed:] != tuple(form.shape[fixed:]):  # T may differ
                raise ValueError(
                    f"{where} should give '{modality}' of shape {tuple(form.shape)}, as `modalities` says. "
                    f"Found {shape}."
                )
        yield batch


def join_batches(batches: Sequence[np.ndarray]) -> np.ndarray:
    """Inputs of several batches in one array, padded with zeros."""
    longest = max(values.shape[1] for values in batches)
    padded = [
        np.pad(values, [(0, 0), (0, longest - values.shape[1])] + [(0, 0)] * (values.ndim - 2)) for values in batches
    ]
    return np.concatenate(padded)


def present_mask(batch: Batch, modality: str) -> np.ndarray:
    """Mask of the samples with the modality."""
    mask = (batch.present or {}).get(modality)
    return np.ones(len(batch), dtype=bool) if mask is None else mask.numpy()


def written_texts(split: Split, name: str, positions: Sequence[int]) -> list[str] | None:
    """Texts that inputs were made of, as they were written; None of other modalities."""
    if not hasattr(split, "texts"):
        return None
    texts: list[str] | None = split.texts(name, positions)
    return texts


def store_of(split: Split) -> Store | None:
    """Store of a split, if it is read from one."""
    store = getattr(split, "store", None)
    return store if isinstance(store, Store) else None
