"""Read MNIST's idx files, packed or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from bmlr.data.readers._files import check_file

_MAX_ITEMS = 100_000  # MNIST has 60,000; bounds what is unpacked of a gzip bomb to 78 MB


def read_idx_images(path: Path) -> np.ndarray:
    """Images, white on black, shape (N, 28, 28), uint8.

    Raises:
        ValueError: If the file is truncated, damaged or of another form; the message names it.
    """
    return _read_idx(path, 0x803, (28, 28))


def read_idx_labels(path: Path) -> np.ndarray:
    """Labels from 0 to 9, shape (N,), int64.

    Raises:
        ValueError: If the file is truncated, damaged or of another form, or a label is out of range; the message
            names it.
    """
    labels = _read_idx(path, 0x801, ()).astype(np.int64)
    if labels.max() > 9:
        index = int(labels.argmax())
        raise ValueError(f"{path} should hold labels from 0 to 9. Found {labels[index]} at position {index}.")
    return labels


def _read_idx(path: Path, magic: int, item_shape: tuple[int, ...]) -> np.ndarray:
    check_file(path, "file")
    try:
        with _open(path) as file:
            header = file.read(8 + 4 * len(item_shape))
            if len(header) < 8 + 4 * len(item_shape) or int.from_bytes(header[:4], "big") != magic:
                raise ValueError(
                    f"{path} should begin with an idx header of magic number 0x{magic:08x}. Found 0x{header.hex()}."
                )
            count, *shape = struct.unpack_from(f">{1 + len(item_shape)}I", header, 4)
            if tuple(shape) != item_shape or not 1 <= count <= _MAX_ITEMS:
                raise ValueError(
                    f"{path} should hold 1 to {_MAX_ITEMS} items of shape {item_shape}. "
                    f"Its header says {count} of shape {tuple(shape)}."
                )
            n_bytes = count * math.prod(item_shape)
            content = file.read(n_bytes + 1)  # one more, to notice a file that is too long without reading all of it
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    if len(content) != n_bytes:
        actual = "more" if len(content) > n_bytes else str(len(content))
        raise ValueError(f"{path} should hold {n_bytes} bytes after its header. Found {actual}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *item_shape)


def _open(path: Path) -> BinaryIO:
    """Open a file, unpacked if its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
