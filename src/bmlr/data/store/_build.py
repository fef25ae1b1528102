"""Decode items once into a store."""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._checks import check_integer, check_unit_interval, nearest_name
from bmlr._files import atomic_write
from bmlr._version import __version__
from bmlr.data.readers._base import FileReader
from bmlr.data.store._cache import (
    checked_name,
    entry_folder,
    plain_key,
    read_entry,
    write_manifest,
)
from bmlr.data.store._interrupt import LOCK, exit_on_sigterm, hold_lock, progress_bar
from bmlr.data.store._journal import JOURNAL, Journal, naming_kept_progress
from bmlr.data.store._options import PrepareResult
from bmlr.data.store._samples import Rejection, SourceSample
from bmlr.data.store._store import REJECTED, open_store, read_rejected
from bmlr.data.store._workers import count_processors, read_results

_VERSION = 1  # of how the arrays are made; part of the key


def prepare_samples(
    name: str,
    items: Sequence[SourceSample],
    readers: Mapping[str, FileReader],
    classes: Sequence[str],
    dest: Path,
    *,
    key: Mapping[str, Any],
    workers: int | None = None,
    max_rejected: float = 0.05,
    progress: bool = True,
) -> PrepareResult:
    """Read every file of every item once and store the arrays.

    The store is a folder ``<name>-<hash>`` in ``dest``: a ``.npy`` file of values and one of offsets per modality,
    ``targets.npy``, ``rejected.csv`` (id, file, reason) and ``manifest.json``, written last. The hash is that of the
    key, the readers' parameters, the classes and the items with their files' names and sizes: a second call with
    the same does nothing, one with anything changed makes another folder. While it is made, the folder has a dot
    before its name and a journal; a call after an interruption goes on from there and reads the missing items only.
    SIGTERM interrupts too, unless the program has a handler of its own for it.

    Items are stored in their order, whatever the number of workers. One that cannot be read, whose label is no class
    or that has a ``problem`` is rejected with its reason.

    Args:
        name: First part of the folder's name: letters, digits, ``-`` and ``_``.
        items: The samples, with unique ids.
        readers: A reader per modality.
        classes: Names of the classes, in the order of the targets.
        dest: Where the folder is made.
        key: What else the items depend on (options of the layout, checksums of lists), as JSON holds it.
        workers: Processes that read; None takes one per processor, 0 reads in this process.
        max_rejected: Share of rejected items, in [0, 1], above which nothing is made. What was read is kept, so that
            a second call with a larger share ends at once.
        progress: Show a progress bar with an estimate of the time left.

    Raises:
        OSError: If ``dest`` cannot be written.
        ValueError: If an argument is wrong, another process prepares the same, no item can be read, more than
            ``max_rejected`` are rejected, or the work was stopped by SIGTERM or a full disk.
    """
    _check_arguments(items, readers, classes)
    check_unit_interval("max_rejected", max_rejected)
    workers = count_processors() if workers is None else check_integer("workers", workers, 0)
    key = plain_key({
        "key": dict(key),
        "version": _VERSION,
        "readers": {modality: dict(reader.parameters) for modality, reader in readers.items()},
        "classes": list(classes),
        "items": _items_checksum(items),
    })  # fmt: skip
    folder = entry_folder(name, key, dest)
    if read_entry(folder, key) is not None:
        _tidy(folder)
        return _prepared(folder, decoded=0)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"The folder {dest} cannot be written: {error.strerror or error}.") from error
    with exit_on_sigterm(partial) as check:
        with hold_lock(partial), contextlib.closing(Journal(partial, readers)) as journal:
            decoded, rejected = _read_all(journal, items, readers, classes, check, workers=workers, progress=progress)
            with naming_kept_progress(partial):
                _write_rejected(partial, rejected)
                _check_share(partial, rejected, len(items), max_rejected)
                _finish(journal, items, readers, classes, key)
        with naming_kept_progress(partial):
            move_in_place(partial, folder)
    return _prepared(folder, decoded=decoded)


def _check_arguments(items: Sequence[SourceSample], readers: Mapping[str, FileReader], classes: Sequence[str]) -> None:
    if not items:
        raise ValueError("`items` should hold at least one sample. Found none.")
    repeated = [item for item, number in collections.Counter(item.id for item in items).items() if number > 1]
    if repeated:
        raise ValueError(f"`items` should have unique ids. Found {len(repeated)} repeated, among them {repeated[:3]}.")
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"`classes` should hold unique names. Found {list(classes)}.")
    for modality in readers:
        checked_name("modality", modality)
        if modality == "targets" or modality.endswith("_offsets"):
            raise ValueError(f"`readers` should not name a modality '{modality}': the store has a file of that name.")
    known = set(readers)
    for item in items:
        if not set(item.files) <= known:
            raise ValueError(f"Sample '{item.id}' should have files for {sorted(known)}. Found {sorted(item.files)}.")


def _items_checksum(items: Sequence[SourceSample]) -> str:
    digest = hashlib.sha256()
    for item in items:
        files = {modality: [path.name, _size(path)] for modality, path in item.files.items()}
        content = [item.id, item.label, item.split, item.group, files, dict(item.extra), item.problem]
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # rejected later, with the reason


def _read_all(
    journal: Journal,
    items: Sequence[SourceSample],
    readers: Mapping[str, FileReader],
    classes: Sequence[str],
    check: Callable[[], None],
    *,
    workers: int,
    progress: bool,
) -> tuple[int, list[Rejection]]:
    """Read what is not in the journal yet; the number read, and the rejections in the order of the items."""
    rejected = {item.id: r for item in items if (r := _reject_unread(item, classes)) is not None}
    waiting = [item for item in items if item.id not in journal.entries and item.id not in rejected]
    results = read_results(waiting, readers, min(workers, len(waiting)))
    with progress_bar(len(waiting), enabled=progress) as advance, contextlib.closing(results):
        for item, result in results:
            check()
            found = result if isinstance(result, Rejection) else journal.add(item, result)
            if found is not None:
                rejected[item.id] = found
            advance(len(rejected))
    return len(waiting), [rejected[item.id] for item in items if item.id in rejected]


def _reject_unread(item: SourceSample, classes: Sequence[str]) -> Rejection | None:
    file = str(next(iter(item.files.values()), ""))
    if item.problem is not None:
        return Rejection(item.id, file, item.problem)
    if item.label not in classes:
        return Rejection(item.id, file, f"its label '{item.label}' is no class.{nearest_name(item.label, classes)}")
    if not item.files:
        return Rejection(item.id, file, "it has no file of any modality")
    return None


def _write_rejected(folder: Path, rejected: Sequence[Rejection]) -> None:
    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "file", "reason"])
            writer.writerows([r.id, r.file, " ".join(r.reason.split())] for r in rejected)

    atomic_write(folder / REJECTED, write)


def _check_share(partial: Path, rejected: Sequence[Rejection], total: int, max_rejected: float) -> None:
    if len(rejected) == total or len(rejected) > max_rejected * total:
        example = f", such as {rejected[0].id}: {rejected[0].reason}" if rejected else ""
        allow = "" if len(rejected) == total else " What was read is kept: allow a larger share to go on."
        raise ValueError(
            f"{len(rejected)} of {total} samples were rejected, more than the share of {max_rejected:g} that "
            f"`max_rejected` allows{example.rstrip('.')}. All are listed with reasons in {partial / REJECTED}.{allow}"
        )


def _finish(
    journal: Journal,
    items: Sequence[SourceSample],
    readers: Mapping[str, FileReader],
    classes: Sequence[str],
    key: Mapping[str, Any],
) -> None:
    """Write headers, offsets, targets and, last, the manifest."""
    by_id = {item.id: item for item in items}
    samples = [_about(by_id[name], entry["files"]) for name, entry in journal.entries.items()]
    numbers = {label: number for number, label in enumerate(classes)}
    small = {"targets": np.array([numbers[sample["label"]] for sample in samples], dtype=np.int64)}
    modalities = {}
    for modality, array in journal.arrays.items():
        modalities[modality] = {"kind": readers[modality].modality.kind, "shape": list(array.finish())}
        small[f"{modality}_offsets"] = np.array(array.offsets, dtype=np.int64)
    for name, values in small.items():
        np.save(journal.folder / f"{name}.npy", values)
    large = {m: np.load(journal.folder / f"{m}.npy", mmap_mode="r" if a.offsets[-1] else None, allow_pickle=False)
             for m, a in journal.arrays.items()}  # fmt: skip
    about = {"classes": list(classes), "modalities": modalities, "versions": _versions(), "samples": samples}
    write_manifest(journal.folder, key, {**small, **large}, **about)


def _about(item: SourceSample, files: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item.id,
        "label": item.label,
        "split": item.split,
        "group": item.id if item.group is None else item.group,
        "files": dict(files),
        "extra": dict(item.extra),
    }


def move_in_place(partial: Path, folder: Path) -> None:
    """Put the whole folder in its place."""
    if folder.exists():  # not whole, or it would have been used
        shutil.rmtree(folder)
    for leftover in partial.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    partial.rename(folder)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove what the folder had need of while it was made."""
    for leftover in (JOURNAL, LOCK):
        with contextlib.suppress(OSError):
            (folder / leftover).unlink()


def _versions() -> dict[str, str]:
    found = {"bmlr": __version__}
    for package in ("numpy", "av", "librosa", "soundfile", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _prepared(folder: Path, *, decoded: int) -> PrepareResult:
    store = open_store(folder)
    counts: dict[str, dict[str, int]] = {}
    for sample in store.samples:
        by_class = counts.setdefault(sample.split or "", dict.fromkeys(store.classes, 0))
        by_class[sample.label] += 1
    return PrepareResult(folder, store.classes, counts, read_rejected(folder), decoded)
