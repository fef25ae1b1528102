"""Decoded samples of an unfinished preparation, one file each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._files import atomic_write
from bmlr.data.readers._base import FileContent
from bmlr.data.store._cache import oserror_reason

PIECES = "samples"  # folder of the pieces in the folder of an unfinished preparation
_ENTRY = "entry.json"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A decoded sample on disk.

    An ``.npz`` file with an array per modality, and a JSON text.

    Attributes:
        path: The file.
        files: Name, size (``bytes``), ``sha256`` and duration (``seconds``) of each modality's source file.
        shapes: Shape of each modality's array.
        dtypes: NumPy type of each modality's array, as text.
    """

    path: Path
    files: Mapping[str, Mapping[str, Any]]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    def values(self, modality: str) -> np.ndarray:
        """Array of a modality."""
        with np.load(self.path, allow_pickle=False) as archive:
            array: np.ndarray = archive[modality]
        return array


def write_piece(
    path: Path, sample_id: str, contents: Mapping[str, FileContent], files: Mapping[str, Mapping[str, Any]]
) -> Piece:
    """Write a decoded sample atomically.

    Raises:
        ValueError: If the disk is full or cannot be written; the message says that progress is kept.
    """
    shapes = {modality: content.values.shape for modality, content in contents.items()}
    dtypes = {modality: content.values.dtype.str for modality, content in contents.items()}
    entry = {"id": sample_id, "files": files, "shapes": shapes, "dtypes": dtypes}

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_ENTRY), json.dumps(entry))
            for modality, content in contents.items():
                with archive.open(zipfile.ZipInfo(f"{modality}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, content.values, allow_pickle=False)

    with keep_progress_on_oserror(path.parent.parent):
        # Not durable: two syncs per sample would be slower than 16 decoders. `read_piece` notices what a power
        # failure took.
        atomic_write(path, write, durable=False)
    return Piece(path, files, shapes, dtypes)


def read_piece(path: Path, sample_id: str) -> Piece | None:
    """Read a piece of an earlier call.

    Returns:
        None if it is absent, damaged or of another sample.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # `np.load` alone leaves some flipped bits unnoticed
                return None
            entry = json.loads(archive.read(_ENTRY))
            names = set(archive.namelist())
        if entry["id"] != sample_id or names != {_ENTRY, *(f"{modality}.npy" for modality in entry["shapes"])}:
            return None
        shapes = {modality: tuple(shape) for modality, shape in entry["shapes"].items()}
        return Piece(path, entry["files"], shapes, entry["dtypes"])
    except Exception:  # zipfile and numpy raise a dozen kinds on damaged files; the sample is decoded again
        return None


@contextlib.contextmanager
def keep_progress_on_oserror(folder: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError: progress is kept."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {oserror_reason(error)}. What was read is kept: the same call goes on from "
            "there."
        ) from error
