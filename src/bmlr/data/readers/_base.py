"""What a reader of files is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bmlr.data._base import Modality


@dataclasses.dataclass(frozen=True)
class FileContent:
    """What a reader found in a file.

    Attributes:
        values: The array to store.
        seconds: Length of the recording or video before it was cut or repeated; None for files without a duration.
    """

    values: np.ndarray
    seconds: float | None = None


class FileReader(Protocol):
    """Turns a file of one modality into an array. Readers are sent to other processes, so they can be pickled."""

    @property
    def modality(self) -> Modality:
        """Form of the stored arrays. A first dimension of −1 differs from file to file; an empty shape is unknown.

        Where the shape is unknown, that of the first file read is required of all others.
        """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything the array depends on but the file, as JSON holds it: another value, another store."""

    def __call__(self, path: Path) -> FileContent:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is unreadable, truncated, silent, too short, …; the message says what is wrong.
        """


MAX_PIXELS = 50_000_000


def reader_parameters(reader: Any) -> dict[str, Any]:
    return {"reader": type(reader).__name__, "version": reader.version, **dataclasses.asdict(reader)}


def check_min_length(path: Path, seconds: float, least: float) -> None:
    if seconds < least:
        raise ValueError(f"{path} is too short: {seconds:.2f} s, at least {least:g} s are needed.")
