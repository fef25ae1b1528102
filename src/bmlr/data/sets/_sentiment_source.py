"""Find the published feature files of CMU-MOSI and CMU-MOSEI and convert them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._files import file_checksum
from bmlr.data._base import SPLITS, SplitName
from bmlr.data.readers._pickles import read_arrays_pickle
from bmlr.data.sets._sentiment_files import read_identities, read_scores, read_steps
from bmlr.data.store._cache import MANIFEST, cache_root, cached_arrays, entry_folder, plain_key, read_entry

MODALITIES = ("text", "vision", "audio")
STANDARDISED = ("vision", "audio")
_VERSION = 1  # of how the arrays are made; part of the cache's key
_SPLIT_NAMES: dict[SplitName, str] = {"train": "train", "val": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True)
class PublishedFiles:
    """What is published of a data set: names of the files, and the widths of their vision and audio features."""

    files: tuple[str, ...]
    widths: Mapping[str, int]


PUBLISHED = {
    "mosi": PublishedFiles(
        ("aligned_50.pkl", "unaligned_50.pkl", "mosi_data.pkl", "mosi_data_noalign.pkl"), {"vision": 20, "audio": 5}
    ),
    "mosei": PublishedFiles(
        (
            "aligned_50.pkl",
            "unaligned_50.pkl",
            "mosei_senti_data.pkl",
            "mosei_senti_data_noalign.pkl",
        ),
        {"vision": 35, "audio": 74},
    ),
}


def open_source(name: str, root: Path, file: str | None, cache: Path | None) -> dict[str, np.ndarray]:
    """The arrays of ``root``: a prepared folder, one that holds it, the published file, or its folder."""
    entries = [] if root.is_file() else _entries(name, root, file)
    if len(entries) > 1:
        raise ValueError(
            f"Parameter `root` should hold one prepared '{name}', or `file` decide. Found "
            f"{', '.join(f'{folder} of {made_from}' for folder, made_from in entries)}."
        )
    if entries:
        entry = read_entry(entries[0][0])
        if entry is None or entry[0]["key"].get("version") != _VERSION:
            raise ValueError(f"{entries[0][0]} is damaged or of another version: remove it and prepare '{name}' again.")
        return entry[1]
    path = find_source(name, root, file)
    return convert_once(name, path, cache_root() if cache is None else cache)[1]


def _entries(name: str, root: Path, file: str | None) -> list[tuple[Path, str]]:
    """Prepared folders in or at ``root``, with the name of the file they were made from."""
    manifests = [root / MANIFEST] if root.name.startswith(f"{name}-") else []
    for folder in (root, root / name):
        manifests += sorted(folder.glob(f"{name}-*/{MANIFEST}"))
    found = []
    for manifest in manifests:
        if manifest.is_file():
            entry = read_entry(manifest.parent)
            made_from = "a damaged entry" if entry is None else str(entry[0]["key"].get("file"))
            if file is None or entry is None or made_from == file:
                found.append((manifest.parent, made_from))
    return found


def find_source(name: str, source: Path, file: str | None) -> Path:
    """The published file."""
    if source.is_file():
        return source
    folders = [source, source / "Processed", source / name, source / name.upper(), source / name.upper() / "Processed"]
    names = PUBLISHED[name].files if file is None else (file,)
    found: list[Path] = []
    for path in (folder / wanted for folder in folders for wanted in names):
        if path.is_file() and not any(path.samefile(other) for other in found):  # where case does not matter
            found.append(path)
    if not found:
        raise FileNotFoundError(
            f"There is no {' or '.join(names)} of '{name}', and nothing prepared from one: looked in "
            f"{', '.join(map(str, folders))}."
        )
    if len(found) > 1:
        raise ValueError(
            f"Parameter `file` should name one of the files of '{name}'. Found {', '.join(map(str, found))}."
        )
    return found[0]


def convert_once(name: str, path: Path, root: Path) -> tuple[Path, dict[str, np.ndarray], bool]:
    """Folder and arrays of a published file's conversion in ``root``, and whether it was made by this call."""
    made = []

    def build() -> dict[str, np.ndarray]:
        made.append(True)
        return _convert(name, path)

    key = plain_key({"data": name, "file": path.name, "sha256": file_checksum(path), "version": _VERSION})
    arrays = cached_arrays(name, key, build, root)
    return entry_folder(name, key, root), arrays, bool(made)


def _convert(name: str, path: Path) -> dict[str, np.ndarray]:
    """All arrays of a published file: samples of all splits one after the other, time steps of all samples too."""
    content = read_arrays_pickle(path)
    splits: dict[SplitName, Mapping[Any, Any]] = {}
    for split, key in _SPLIT_NAMES.items():
        values = content.get(key)
        if not isinstance(values, dict):
            raise ValueError(f"{path} should hold a dictionary '{key}'. Found {sorted(map(str, content))}.")
        splits[split] = values
    scores, ids, videos = [], [], []
    for split, values in splits.items():
        where = f"{path}: '{_SPLIT_NAMES[split]}'"
        identities = read_identities(values, where)
        ids += [identity for identity, _ in identities]
        videos += [video for _, video in identities]
        scores.append(read_scores(values, len(identities), where))
    arrays = {
        "ids": np.array(ids),
        "videos": np.array(videos),
        "scores": np.concatenate(scores),
        "split": np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(split) for split in scores]),
    }
    reports = []
    for modality in MODALITIES:
        stated = {f"{path}: '{_SPLIT_NAMES[split]}'": values for split, values in splits.items()}
        steps, report = read_steps(stated, modality, [len(split) for split in scores])
        arrays[modality] = np.concatenate(steps)
        arrays[f"{modality}_offsets"] = np.concatenate(([0], np.cumsum([len(rows) for rows in steps])))
        reports.append(report)
    _check_identity(name, path, arrays)
    arrays["replaced"] = np.array([report.replaced for report in reports], dtype=np.int64)
    arrays["beyond"] = np.array([report.beyond for report in reports], dtype=np.int64)
    arrays["padding"] = np.array([report.padding for report in reports])
    return arrays


def _check_identity(name: str, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError if the file is the other data set's, which has files of the same names."""
    widths = {modality: arrays[modality].shape[1] for modality in STANDARDISED}
    for other, published in PUBLISHED.items():
        if other != name and widths == published.widths and not path.name.startswith(f"{name}_"):
            raise ValueError(f"{path} should be of '{name}'. Its widths, {widths}, are those of '{other}'.")
