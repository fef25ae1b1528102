"""Open prepared data."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.store._cache import content_digest, read_entry
from bmlr.data.store._samples import Rejection, StoredSample
from bmlr.data.store._targets import TaskName

REJECTED = "rejected.csv"


@dataclasses.dataclass(frozen=True)
class Store:
    """Prepared samples on disk, memory-mapped; needs no source files.

    Attributes:
        folder: Folder of the store.
        classes: Names of the classes or labels, in the order of the targets; none for numbers.
        samples: The samples.
        targets: Class indices (N,), int64; zeros and ones of several labels (N, L), float32; or numbers (N,), float32.
        modalities: Form of each modality's arrays; a first dimension of −1 differs between samples.
        arrays: Values of each modality. Sample i has rows ``offsets[name][i]`` to ``offsets[name][i + 1]``: one row
            where the shape is fixed, as many as there are frames or steps where it is not, none where the sample
            lacks the modality.
        offsets: First row of each sample, shape (N + 1,), by modality.
        key: Parameters the store was made with.
        digest: SHA-256 checksum of classes, samples and arrays.
    """

    folder: Path
    classes: tuple[str, ...]
    samples: tuple[StoredSample, ...]
    targets: np.ndarray
    modalities: Mapping[str, Modality]
    arrays: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]
    key: Mapping[str, Any]
    digest: str

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def task(self) -> TaskName:
        """Name of the task: ``multiclass``, ``multilabel`` or ``regression``."""
        task: TaskName = self.key.get("task", "multiclass")
        return task

    def present(self, name: str) -> np.ndarray:
        """Mask of the samples with modality ``name``, shape (N,)."""
        mask: np.ndarray = np.diff(self.offsets[name]) > 0
        return mask

    def values(self, name: str, sample: int) -> np.ndarray:
        """Rows of one sample: shape (1, …) for a fixed shape, else (T, …)."""
        start, end = self.offsets[name][sample : sample + 2]
        rows: np.ndarray = self.arrays[name][start:end]
        return rows


def open_store(folder: Path, *, verify: bool = False) -> Store:
    """Open prepared data.

    Args:
        folder: Folder made by :func:`prepare_samples`.
        verify: Compare the files' SHA-256 checksums too, which reads them whole.

    Raises:
        FileNotFoundError: If there is no prepared data in the folder.
        ValueError: If the files are damaged.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"There is no prepared data in {folder}: it has no manifest.json.")
    entry = read_entry(folder, verify=verify)
    if entry is None:
        raise ValueError(f"The prepared data in {folder} is damaged. Remove the folder and prepare it again.")
    manifest, arrays = entry
    try:
        modalities = {m: Modality.from_dict(e) for m, e in manifest["modalities"].items()}
        return Store(
            folder=folder,
            classes=tuple(manifest["classes"]),
            samples=tuple(StoredSample(**sample) for sample in manifest["samples"]),
            targets=np.array(arrays["targets"]),
            modalities=modalities,
            arrays={m: arrays[m] for m in modalities},
            offsets={m: np.array(arrays[f"{m}_offsets"]) for m in modalities},
            key=manifest["key"],
            digest=content_digest(manifest),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not prepared data, or of an earlier version of bmlr: its manifest has no {error}. "
            "Prepare the data again."
        ) from error


def find_store(root: Path, name: str) -> Path:
    """Find the folder of a prepared data set.

    It is ``root`` itself or the only one in it.

    Raises:
        FileNotFoundError: If ``root`` has no such folder; the message says how to make it.
        ValueError: If it has several; the message lists them.
    """
    root = Path(root)
    if (root / "manifest.json").is_file():
        return root
    folders = sorted(path.parent for path in root.glob(f"{name}-*/manifest.json") if path.parent.name[0] != ".")
    if not folders:
        raise FileNotFoundError(
            f"There is no prepared '{name}' in {root}. Make it with: bmlr prepare {name} SOURCE {root}"
        )
    if len(folders) > 1:
        raise ValueError(
            f"Parameter `root` should be one prepared folder: {root} holds {len(folders)}. "
            f"Choose one of {', '.join(map(str, folders))}."
        )
    return folders[0]


def read_rejected(folder: Path) -> tuple[Rejection, ...]:
    """Samples left out of a store or of an unfinished preparation."""
    with (Path(folder) / REJECTED).open(encoding="utf-8", newline="") as file:
        return tuple(Rejection(row["id"], row["file"], row["reason"]) for row in csv.DictReader(file))
