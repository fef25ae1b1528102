"""The arrays and the journal of an unfinished preparation."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent, FileReader
from bmlr.data.store._cache import (
    reason_of,
)
from bmlr.data.store._samples import Rejection, SourceSample

JOURNAL = "clips.jsonl"


_HEADER = 256  # bytes before the values in a growing .npy file, enough for any shape it may come to


@contextlib.contextmanager
def naming_kept_progress(folder: Path) -> Iterator[None]:
    """Say of an error of the system that what was read is kept."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {reason_of(error)}. What was read is kept: the same call goes on from there."
        ) from error


class _Growing:
    """A ``.npy`` file that grows by whole samples; its header is written when the number of rows is known."""

    def __init__(self, path: Path, modality: Modality) -> None:
        self.modality = modality
        self.ragged = modality.shape[:1] == (-1,)
        shape = modality.shape[1:] if self.ragged else modality.shape
        self.row_shape: tuple[int, ...] | None = tuple(shape) or None
        self.dtype: np.dtype[Any] | None = None
        self.offsets = [0]
        path.touch()
        self.file: IO[bytes] = path.open("r+b")
        self.path = path
        self.end = _HEADER

    def complaint(self, values: np.ndarray) -> str | None:
        """Why an array cannot be stored beside the others; None where it can."""
        row = values.shape[1:] if self.ragged else values.shape
        if values.dtype.hasobject:
            return f"holds values of type {values.dtype}, not numbers"
        if not values.size:
            return f"holds no values (shape {values.shape})"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return "holds NaN or infinity"
        if self.row_shape is not None and row != self.row_shape:
            wanted = (-1, *self.row_shape) if self.ragged else self.row_shape
            return f"has shape {values.shape}, where {wanted} is expected"
        if self.dtype is not None and values.dtype != self.dtype:
            return f"has type {values.dtype}, where {self.dtype} is expected"
        return None

    def append(self, values: np.ndarray | None) -> dict[str, Any] | None:
        """Write one sample (None: the modality is absent); what the journal needs to find it again."""
        if values is None:
            self.offsets.append(self.offsets[-1])
            return None
        content = values.tobytes()  # in C order, whatever the array's
        self.file.seek(self.end)
        self.file.write(content)
        self.file.flush()
        entry = {"shape": list(values.shape), "dtype": values.dtype.str, "crc": zlib.crc32(content)}
        self._advance(entry)
        return entry

    def restore(self, entry: Mapping[str, Any] | None) -> bool:
        """Take up a sample that is in the file already; False where it is not there whole."""
        if entry is None:
            self.offsets.append(self.offsets[-1])
            return True
        size = int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize
        self.file.seek(self.end)
        content = self.file.read(size)
        if len(content) < size or zlib.crc32(content) != entry["crc"]:
            return False
        self._advance(entry)
        return True

    def _advance(self, entry: Mapping[str, Any]) -> None:
        shape = tuple(entry["shape"])
        self.dtype = np.dtype(entry["dtype"])
        self.row_shape = shape[1:] if self.ragged else shape
        self.offsets.append(self.offsets[-1] + (shape[0] if self.ragged else 1))
        self.end += int(np.prod(shape)) * self.dtype.itemsize

    def finish(self) -> tuple[int, ...]:
        """Write the header; the shape of a stored sample, −1 where it differs."""
        row = self.row_shape or ()
        dtype = np.dtype(np.float32) if self.dtype is None else self.dtype  # only if no sample has the modality
        described = {"descr": dtype.str, "fortran_order": False, "shape": (self.offsets[-1], *row)}
        text = repr(described).encode("latin1").ljust(_HEADER - 11) + b"\n"
        self.file.truncate(self.end)
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        self.file.flush()
        os.fsync(self.file.fileno())
        return (-1, *row) if self.ragged else row


class Journal:
    """The stored samples of an unfinished preparation: the growing arrays and a line of JSON per sample."""

    def __init__(self, folder: Path, readers: Mapping[str, FileReader]) -> None:
        self.folder = folder
        self.arrays = {m: _Growing(folder / f"{m}.npy", reader.modality) for m, reader in readers.items()}
        self.entries: dict[str, dict[str, Any]] = {}
        path = folder / JOURNAL
        path.touch()
        self.file: IO[bytes] = path.open("r+b")
        self._restore()

    def _restore(self) -> None:
        """Take up the samples written before; at the first that is not there whole, drop it and all after it."""
        end = 0
        for line in self.file:
            entry = _from_line(line)
            if entry is None or set(entry["stored"]) != set(self.arrays):
                break
            before = {m: (array.end, len(array.offsets)) for m, array in self.arrays.items()}
            if not all(array.restore(entry["stored"][m]) for m, array in self.arrays.items()):
                for m, (place, length) in before.items():
                    self.arrays[m].end = place
                    del self.arrays[m].offsets[length:]
                break
            self.entries[entry["id"]] = entry
            end += len(line)
        self.file.seek(end)
        self.file.truncate()

    def add(
        self, item: SourceSample, readings: Mapping[str, tuple[FileContent, Mapping[str, Any]]]
    ) -> Rejection | None:
        """Store a sample; a rejection where its arrays do not fit the others."""
        for modality, (reading, _) in readings.items():
            if complaint := self.arrays[modality].complaint(reading.values):
                return Rejection(item.id, str(item.files[modality]), f"{modality} {complaint}")
        with naming_kept_progress(self.folder):
            stored = {
                m: array.append(readings[m][0].values if m in readings else None) for m, array in self.arrays.items()
            }
            entry = {"id": item.id, "stored": stored, "files": {m: dict(about) for m, (_, about) in readings.items()}}
            self.file.write(_to_line(entry))
            self.file.flush()
        self.entries[item.id] = entry
        return None

    def close(self) -> None:
        """Close all files; what a full disk could not take has been told of before."""
        for file in (self.file, *(array.file for array in self.arrays.values())):
            with contextlib.suppress(OSError):
                file.close()


def _to_line(entry: Mapping[str, Any]) -> bytes:
    """An entry as a line of the journal, its checksum first."""
    content = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _from_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line of the journal; None if the line is not what was written, or not all of it."""
    checksum, _, content = line.partition(b" ")
    if not content.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(content[:-1]):
        return None
    entry: dict[str, Any] = json.loads(content)
    return entry
