"""Pack decoded samples into one array file per modality."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.store._pieces import Piece


class Column:
    """Packed array of one modality, described before it is written.

    Shape and type are those of the first piece added, where the modality's form leaves them open; all others are
    compared with them. Pieces are added in the order of the samples, so that the result does not depend on the order
    of decoding or on interruptions.
    """

    def __init__(self, name: str, modality: Modality) -> None:
        self.name = name
        self.ragged = modality.shape[:1] == (-1,)
        shape = modality.shape[1:] if self.ragged else modality.shape
        self.row_shape: tuple[int, ...] | None = tuple(shape) or None
        self.dtype: np.dtype[Any] | None = None
        self.offsets = [0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample's array, with −1 for a varying length."""
        return (-1, *(self.row_shape or ())) if self.ragged else self.row_shape or ()

    def find_mismatch(self, piece: Piece) -> str | None:
        """Difference of a piece's array from those before, or None."""
        if self.name not in piece.shapes:
            return None
        shape, dtype = piece.shapes[self.name], np.dtype(piece.dtypes[self.name])
        row = shape[1:] if self.ragged else shape
        if (self.ragged and not shape) or (self.row_shape is not None and row != self.row_shape):
            return f"{self.name} has shape {shape}, where {self.shape} is expected"
        if self.dtype is not None and dtype != self.dtype:
            return f"{self.name} has type {dtype}, where {self.dtype} is expected"
        return None

    def add(self, piece: Piece) -> None:
        """Add the next sample; an absent modality has no rows."""
        rows = 0
        if self.name in piece.shapes:
            shape = piece.shapes[self.name]
            self.row_shape = shape[1:] if self.ragged else shape
            self.dtype = np.dtype(piece.dtypes[self.name])
            rows = shape[0] if self.ragged else 1
        self.offsets.append(self.offsets[-1] + rows)

    def write(self, path: Path, pieces: Sequence[Piece]) -> None:
        """Write the ``.npy`` file, one piece at a time."""
        dtype = np.dtype(np.float32) if self.dtype is None else self.dtype  # None: no sample has the modality
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.offsets[-1], *(self.row_shape or ())),
        }
        with path.open("wb") as file:  # not a memory map: a full disk would end the process by SIGBUS
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                if self.name in piece.shapes:
                    file.write(piece.values(self.name).tobytes())  # in C order, whatever the array's
            file.flush()
            os.fsync(file.fileno())
