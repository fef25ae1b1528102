"""Read arrays from ``.npy`` files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import Kind, Modality
from bmlr.data.readers._base import FileContent, reader_parameters


@dataclasses.dataclass(frozen=True)
class ArrayReader:
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

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return reader_parameters(self)

    def __call__(self, path: Path) -> FileContent:
        """Read an array."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no array {path}.")
        try:
            with path.open("rb") as file:
                values = np.load(file, allow_pickle=False)
        except Exception as error:  # numpy raises a dozen kinds, some with messages of several lines
            raise ValueError(
                f"{path} cannot be read as a .npy file of numbers: {' '.join(str(error).split())}"
            ) from error
        dimensions = 1 if self.kind == "vector" else 2
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
            raise ValueError(f"{path} should hold one array of real numbers.")
        if values.ndim != dimensions:
            raise ValueError(
                f"{path} should hold a {self.kind} of {dimensions} dimensions. Found shape {values.shape}."
            )
        return FileContent(np.ascontiguousarray(values, dtype=np.float32))
