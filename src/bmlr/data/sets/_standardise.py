"""Standardisation of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bmlr.data.store._store import Store

_BLOCK = 1 << 16  # stored rows per block of the statistics; bounds the memory they take


def standardise(values: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Values minus the mean ``statistics[0]``, divided by the standard deviation ``statistics[1]``, float32."""
    standardised: np.ndarray = ((values - statistics[0]) / statistics[1]).astype(np.float32)
    return standardised


def feature_statistics(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each feature, or channel of frames, shape (2, d).

    Time steps of zeros are left out. A constant feature gets the standard deviation 1.

    Raises:
        ValueError: If all features are constant: the modality would silently contribute nothing to a result.
    """
    used_samples = np.zeros(len(store), dtype=bool)
    used_samples[rows] = True
    used = np.repeat(used_samples, np.diff(store.offsets[name]))
    padded = store.modalities[name].kind == "sequence"
    values = store.arrays[name]

    rows_per_block = max(1, _BLOCK // math.prod(values.shape[1:-1]))

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(values), rows_per_block):
            stop = start + rows_per_block
            yield np.asarray(values[start:stop][used[start:stop]], dtype=np.float64)

    return block_statistics(blocks, padded=padded, name=name, place=str(store.folder))


def block_statistics(blocks: Callable[[], Iterable[np.ndarray]], *, padded: bool, name: str, place: str) -> np.ndarray:
    """Mean and standard deviation of each feature of arrays (…, d) given in blocks; see :func:`feature_statistics`.

    Args:
        blocks: Gives the blocks, once for the mean and once for the deviation.
        padded: Leave out time steps of zeros.
        name: The modality, for messages.
        place: Where it is, for messages.
    """

    def steps() -> Iterator[np.ndarray]:
        for block in blocks():
            flat = np.asarray(block, dtype=np.float64).reshape(-1, block.shape[-1])
            yield flat[flat.any(1)] if padded else flat

    count = sum(map(len, steps()))
    mean = sum(flat.sum(0) for flat in steps()) / max(count, 1)
    # Two passes: the sum of squares alone would cancel where the mean is large.
    std = np.sqrt(sum(((flat - mean) ** 2).sum(0) for flat in steps()) / max(count, 1))
    constant = std <= 1e-6 * np.abs(mean)
    if constant.all():
        raise ValueError(
            f"'{name}' should not be the same {'at every time step' if padded else 'in every sample'} of the training "
            f"split of {place}. Leave it out, or set `standardise = False` to keep it as it is."
        )
    return np.stack((mean, np.where(constant, 1.0, std)))
