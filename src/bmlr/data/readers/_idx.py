"""Reading MNIST's idx files, packed or not, with every claim of the header checked before it is believed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

_MAX_ITEMS = 100_000  # MNIST has 60,000; a header that says more is damaged, and bounds what is unpacked


_BLOCK = 1 << 20


def read_idx_images(path: Path) -> np.ndarray:
    """Images of 28 × 28 pixels, shape (N, 28, 28), uint8, white on black.

    Raises:
        ValueError: If the file is not what it should be; the message names it.
    """
    return _read_idx(path, 0x803, (28, 28))


def read_idx_labels(path: Path) -> np.ndarray:
    """Labels from 0 to 9, shape (N,), int64.

    Raises:
        ValueError: If the file is not what it should be or a label is out of range; the message names it.
    """
    labels = _read_idx(path, 0x801, ()).astype(np.int64)
    if labels.max() > 9:
        at = int(labels.argmax())
        raise ValueError(f"{path} should hold labels from 0 to 9. Found {labels[at]} at position {at}.")
    return labels


def _read_idx(path: Path, magic: int, item_shape: tuple[int, ...]) -> np.ndarray:
    try:
        with _open(path) as file:
            header = file.read(8 + 4 * len(item_shape))
            if len(header) < 8 + 4 * len(item_shape) or int.from_bytes(header[:4], "big") != magic:
                raise ValueError(
                    f"{path} should begin with an idx header of magic number 0x{magic:08x}. Found 0x{header.hex()}."
                )
            count, *sizes = struct.unpack_from(f">{1 + len(item_shape)}I", header, 4)
            shape = tuple(sizes)
            if shape != item_shape or not 1 <= count <= _MAX_ITEMS:
                raise ValueError(
                    f"{path} should hold 1 to {_MAX_ITEMS} items of shape {item_shape}. "
                    f"Its header says {count} of shape {shape}."
                )
            content = _read_at_most(file, count * math.prod(item_shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    expected = count * math.prod(item_shape)
    if len(content) != expected:
        found = "more" if len(content) > expected else str(len(content))
        raise ValueError(f"{path} should hold {expected} bytes after its header. Found {found}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *item_shape)


def _open(path: Path) -> BinaryIO:
    """The file, unpacked on the way if its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read_at_most(file: BinaryIO, limit: int) -> bytes:
    """Up to ``limit`` bytes; memory grows with what the file really holds, not with what its header says."""
    content = bytearray()
    while len(content) < limit and (block := file.read(min(_BLOCK, limit - len(content)))):
        content += block
    return bytes(content)
