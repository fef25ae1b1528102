"""Interface of a file reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bmlr.data._base import Modality


@dataclasses.dataclass(frozen=True)
class FileContent:
    """Array decoded from a file.

    Attributes:
        values: The array to store.
        seconds: Duration of the audio or video before it was cut or repeated; None for files without one.
    """

    values: np.ndarray
    seconds: float | None = None


class FileReader(Protocol):
    """Decoder of one modality's files into arrays.

    It can be pickled, for worker processes.
    """

    @property
    def modality(self) -> Modality:
        """Form of the stored arrays.

        A first dimension of −1 differs from file to file. With an empty shape, that of the first sample is required
        of all others.
        """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything the array depends on besides the file, as JSON.

        Other values lead to another store.
        """

    def __call__(self, path: Path) -> FileContent:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is unreadable, truncated, silent, too short, …; the message gives the reason.
        """


MAX_PIXELS = 50_000_000  # of an image or frame; a few kilobytes can unpack to gigabytes


def reader_parameters(reader: Any) -> dict[str, Any]:
    """Name, version and fields of a reader."""
    return {"reader": type(reader).__name__, "version": reader.version, **dataclasses.asdict(reader)}


def check_min_length(path: Path, seconds: float, min_seconds: float) -> None:
    """Raise a ValueError if audio or video is too short."""
    if seconds < min_seconds:
        raise ValueError(f"{path} is too short: {seconds:.2f} s, at least {min_seconds:g} s are needed.")
