"""Read arrays from ``.npy`` files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import Kind, Modality
from bmlr.data.readers._base import FileContent, FileReader, Interval
from bmlr.data.readers._files import blame_bytes, check_file


@dataclasses.dataclass(frozen=True)
class ArrayReader(FileReader):
    """Reader of ``.npy`` files of numbers, as float32; never unpickles.

    Args:
        kind: ``vector``, shape (d,), or ``sequence``, shape (T, d), whose length T may differ between files.
        width: Number of features d; None requires that of the first file of all.
    """

    kind: Literal["vector", "sequence"] = "vector"
    width: int | None = None

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("vector", "sequence"))
        if self.width is not None:
            check_integer("width", self.width, 1)

    @property
    def modality(self) -> Modality:
        """A vector (d,) or a sequence (T, d)."""
        kind: Kind = self.kind
        row = () if self.width is None else (self.width,)
        return Modality(kind, (-1, *row) if kind == "sequence" else row)

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read an array."""
        path = Path(path)
        values = load_numbers(path)
        dimensions = 1 if self.kind == "vector" else 2
        if values.ndim != dimensions:
            raise ValueError(
                f"{path} should hold a {self.kind} of {dimensions} dimensions. Found shape {values.shape}."
            )
        return FileContent(np.ascontiguousarray(values, dtype=np.float32))


def load_numbers(path: Path, *, mapped: bool = False) -> np.ndarray:
    """An array of real numbers from a .npy file, read or mapped into memory.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else.
    """
    check_file(path, "array")
    # An open file is closed whatever is in it; mapping takes a path alone.
    with blame_bytes(path, "a .npy file of numbers", _describe_error), path.open("rb") as file:
        values = np.load(path, mmap_mode="r", allow_pickle=False) if mapped else np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise ValueError(f"{path} should hold one array of real numbers.")
    return values


def _describe_error(error: Exception) -> str:
    return " ".join(str(error).split())  # numpy's have several lines
