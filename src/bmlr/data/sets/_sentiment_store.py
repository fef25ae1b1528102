"""Published feature files of text, vision and audio, converted to arrays once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._checks import check_choice
from bmlr._files import file_checksum
from bmlr.data._base import SPLITS, SplitName
from bmlr.data._group_split import leave_out_shared
from bmlr.data.readers._pickles import read_arrays_pickle
from bmlr.data.sets._sentiment_files import (
    MODALITIES,
    NOT_FINITE,
    PUBLISHED_FILES,
    read_identities,
    read_scores,
    read_steps,
)
from bmlr.data.store._cache import MANIFEST, cache_root, cached_arrays, entry_folder, plain_key, read_entry
from bmlr.data.store._options import PrepareResult
from bmlr.data.store._plausibility import describe_counts
from bmlr.tables import format_count

_VERSION = 1  # of the conversion; part of the cache's key

_PUBLISHED_SPLITS: dict[SplitName, str] = {"train": "train", "val": "valid", "test": "test"}


def prepare_sentiment(name: str, source: Path, dest: Path, *, file: str | None = None) -> PrepareResult:
    """Convert a published feature file to memory-mapped arrays.

    A second call with the same file does nothing. Targets, protocol and standardisation are parameters of the data
    set and need no other conversion.

    Args:
        name: ``mosi``, ``mosei``, ``ch-sims``, ``ur-funny`` or ``mustard``.
        source: The published file, or a folder with it.
        dest: Folder in which the folder ``<name>-<hash>`` is made.
        file: Name of the published file, where the folder holds several.

    Returns:
        Counts by published split and class, of the finest ones; as notes, a sentence per modality and one for the clean
        protocol if it leaves samples out.

    Raises:
        FileNotFoundError: If there is no such file; the message says where it was looked for.
        OSError: If ``dest`` cannot be written.
        ValueError: If the file is none of the known layouts, damaged, of the other data set, or one of several.
    """
    check_choice("data", name, PUBLISHED_FILES)
    path = _find_source(name, Path(source), file)
    folder, arrays, made = _converted(name, path, Path(dest))
    scale = PUBLISHED_FILES[name].scale
    classes, targets = scale.classes, scale.classify(arrays["scores"])
    counts: dict[str, dict[str, int]] = {}
    for code, split in enumerate(SPLITS):
        numbers = np.bincount(targets[arrays["split"] == code], minlength=len(classes)).tolist()
        counts[split] = dict(zip(classes, numbers, strict=True))
    samples = {split: sum(by_class.values()) for split, by_class in counts.items()}
    notes = (*_notes(name, arrays), *_check_widths(name, path, arrays), *describe_counts(counts, samples))
    return PrepareResult(folder, classes, counts, samples, (), len(targets) if made else 0, notes)


def _notes(data: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Sentences on the contents of a converted file."""
    notes = []
    for index, name in enumerate(MODALITIES):
        lengths = np.diff(arrays[f"{name}_offsets"])
        replaced = ", ".join(
            f"{count} {kind}" for kind, count in zip(NOT_FINITE, arrays["replaced"][index].tolist(), strict=True)
        )
        longest, beyond, lacking = max(1, int(lengths.max())), int(arrays["beyond"][index]), int((lengths == 0).sum())
        notes.append(
            f"{name}: width {arrays[name].shape[1]}, at most {format_count(longest, 'step')}, padding "
            f"{arrays['padding'][index]}; set to 0: {replaced}; {format_count(beyond, 'step')} beyond the stated "
            f"length left out; {format_count(lacking, 'sample')} without it"
        )
    separates = (arrays["videos"] != "").all() and not PUBLISHED_FILES[data].shares_videos
    _, left_out = split_samples(arrays, "clean") if separates else ({}, np.zeros(0, dtype=np.int64))
    if len(left_out):
        ids = ", ".join(arrays["ids"][left_out[:5]].tolist())
        more = ", …" if len(left_out) > 5 else ""
        shared = format_count(len(left_out), "sample that shares", "samples that share")
        notes.append(f"protocol clean leaves out {shared} a video with another split: {ids}{more}")
    return tuple(notes)


def open_source(name: str, root: Path, file: str | None, cache: Path | None) -> tuple[Path, dict[str, np.ndarray]]:
    """Folder and arrays of the prepared or converted data.

    ``root`` is a prepared folder, its parent, the published file, or the folder of that file.

    Raises:
        FileNotFoundError: If there is nothing to read; the message lists the folders searched.
        ValueError: If the file is damaged, of another layout or data set, or one of several.
    """
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
        return entries[0][0], entry[1]
    path = _find_source(name, root, file)
    return _converted(name, path, cache_root() if cache is None else cache)[:2]


def _entries(name: str, root: Path, file: str | None) -> list[tuple[Path, str]]:
    """Prepared folders in or at ``root``, and their source files' names."""
    manifests = [root / MANIFEST] if root.name.startswith(f"{name}-") else []
    for parent in (root, root / name):
        manifests += sorted(parent.glob(f"{name}-*/{MANIFEST}"))
    folders = []
    for manifest in manifests:
        if manifest.is_file():
            entry = read_entry(manifest.parent)
            made_from = "a damaged entry" if entry is None else str(entry[0]["key"].get("file"))
            if file is None or entry is None or made_from == file:
                folders.append((manifest.parent, made_from))
    return folders


def _find_source(name: str, source: Path, file: str | None) -> Path:
    """Path of the published file."""
    if source.is_file():
        return source
    published = source / PUBLISHED_FILES[name].folder
    folders = [source, source / "Processed", source / name, published, published / "Processed"]
    names = PUBLISHED_FILES[name].names if file is None else (file,)
    paths: list[Path] = []
    for path in (folder / file_name for folder in folders for file_name in names):
        # Where the file system ignores case, two folders are one and would list the file twice.
        if path.is_file() and not any(path.samefile(listed) for listed in paths):
            paths.append(path)
    if not paths:
        raise FileNotFoundError(
            f"There is no {' or '.join(names)} of '{name}', and nothing prepared from one: looked in "
            f"{', '.join(map(str, folders))}."
        )
    if len(paths) > 1:
        raise ValueError(
            f"Parameter `file` should name one of the files of '{name}'. Found {', '.join(map(str, paths))}."
        )
    return paths[0]


def _converted(name: str, path: Path, root: Path) -> tuple[Path, dict[str, np.ndarray], bool]:
    """Convert a file in ``root``, unless it was before.

    Returns:
        Folder, arrays, and whether this call converted the file.
    """
    made = []

    def build() -> dict[str, np.ndarray]:
        made.append(True)
        return _convert(name, path)

    key = plain_key({"data": name, "file": path.name, "sha256": file_checksum(path), "version": _VERSION})
    arrays = cached_arrays(name, key, build, root)
    return entry_folder(name, key, root), arrays, bool(made)


def _convert(name: str, path: Path) -> dict[str, np.ndarray]:
    """Arrays of a published file, samples of all splits in sequence."""
    content = read_arrays_pickle(path)
    splits: dict[SplitName, Mapping[Any, Any]] = {}
    for split, published in _PUBLISHED_SPLITS.items():
        values = content.get(published)
        if not isinstance(values, dict):
            raise ValueError(f"{path} should hold a dictionary '{published}'. Found {sorted(map(str, content))}.")
        splits[split] = values
    scores, ids, videos = [], [], []
    for split, values in splits.items():
        where = f"{path}: '{_PUBLISHED_SPLITS[split]}'"
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
        stated = {f"{path}: '{_PUBLISHED_SPLITS[split]}'": values for split, values in splits.items()}
        steps, report = read_steps(stated, modality, [len(split) for split in scores])
        arrays[modality] = np.concatenate(steps)
        arrays[f"{modality}_offsets"] = np.concatenate(([0], np.cumsum([len(rows) for rows in steps])))
        reports.append(report)
    _check_identity(name, path, arrays)
    _check_scores(name, path, arrays["scores"])
    arrays["replaced"] = np.array([report.replaced for report in reports], dtype=np.int64)
    arrays["beyond"] = np.array([report.beyond for report in reports], dtype=np.int64)
    arrays["padding"] = np.array([report.padding for report in reports])
    return arrays


def _check_identity(name: str, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a file of another data set.

    Several have files of the same names.
    """
    widths = {modality: arrays[modality].shape[1] for modality in ("vision", "audio")}
    if widths == PUBLISHED_FILES[name].widths_of(path) or path.name.startswith(f"{name}_"):
        return
    for other_name, published in PUBLISHED_FILES.items():
        if other_name != name and widths == published.widths:
            raise ValueError(f"{path} should be of '{name}'. Its widths, {widths}, are those of '{other_name}'.")


def _check_widths(name: str, path: Path, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Warning for widths that no published file of the data set has."""
    widths = {modality: arrays[modality].shape[1] for modality in ("vision", "audio")}
    published = PUBLISHED_FILES[name].widths_of(path)
    if widths == published:
        return []
    sentence = (
        f"Warning: {path} has widths {_listed_widths(widths)}; the published files of '{name}' have "
        f"{_listed_widths(published)}. Is it another data set, or are the features others?"
    )
    return [sentence]


def _listed_widths(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{modality} {width}" for modality, width in widths.items())


def _check_scores(name: str, path: Path, scores: np.ndarray) -> None:
    """Refuse scores of another data set, of which classes could be made all the same."""
    low, high = float(scores.min()), float(scores.max())
    values = np.unique(scores)
    scale = PUBLISHED_FILES[name].scale
    if scale.values is not None:
        if set(values.tolist()) <= set(scale.values):
            return
        wanted = " and ".join(f"{value:g}" for value in scale.values)
        reason = f"they range from {low:g} to {high:g}, and those of '{name}' are {wanted}"
    elif low < -scale.limit or high > scale.limit:
        reason = f"they range from {low:g} to {high:g}, beyond [-{scale.limit:g}, {scale.limit:g}]"
    elif len(values) <= 3 and (values == values.round()).all():
        reason = f"they are only {', '.join(f'{value:g}' for value in values)}: classes, as of sarcasm or humour"
    elif scale.limit == 3 and len(scores) >= 20 and max(abs(low), abs(high)) <= 1:
        reason = f"they range from {low:g} to {high:g}, as those of CH-SIMS, not over [-3, 3]"
    else:
        return
    raise ValueError(
        f"{path} should hold scores of '{name}'. It is another data set: {reason}. Of other data, write a "
        "table with a class and files of features for each sample, and prepare it as a manifest."
    )


def split_samples(arrays: Mapping[str, np.ndarray], protocol: str) -> tuple[dict[SplitName, np.ndarray], np.ndarray]:
    """Indices of the samples of each split, and of those left out."""
    split, videos = np.asarray(arrays["split"]), np.asarray(arrays["videos"])
    rows: dict[SplitName, np.ndarray] = {name: np.flatnonzero(split == code) for code, name in enumerate(SPLITS)}
    if protocol == "paper":
        return rows, np.zeros(0, dtype=np.int64)
    unknown = np.flatnonzero(videos == "")
    if len(unknown):
        raise ValueError(
            "Protocol 'clean' needs identifiers that tell the source video, as 'video$_$clip'. "
            f"Found '{arrays['ids'][unknown[0]]}'. Protocol 'paper' takes the published split."
        )
    rows = leave_out_shared(rows, videos.tolist())
    return rows, np.setdiff1d(np.arange(len(split)), np.concatenate(list(rows.values())))
