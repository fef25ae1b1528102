"""Decode samples once into a store."""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._checks import check_integer, check_unit_interval
from bmlr._files import atomic_write
from bmlr._processors import count_processors
from bmlr._version import __version__
from bmlr.data._base import SPLITS
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._files import source_bytes
from bmlr.data.store._cache import checked_name, entry_folder, plain_key, read_entry, write_manifest
from bmlr.data.store._interrupt import HOLDER, LOCK, exit_on_sigterm, hold_lock, progress_bar
from bmlr.data.store._options import PrepareResult
from bmlr.data.store._pack import Column
from bmlr.data.store._pieces import PIECES, Piece, keep_progress_on_oserror, read_piece
from bmlr.data.store._plausibility import (
    describe_counts,
    describe_drawn,
    describe_equal,
    describe_repeats,
    equal_modalities,
)
from bmlr.data.store._samples import Fault, Rejection, SourceSample, refuse_pointers
from bmlr.data.store._store import REJECTED, open_store, read_rejected
from bmlr.data.store._targets import NumberRange, TargetForm, TaskName, count_classes
from bmlr.data.store._workers import DecodeTask, decode_all

_MAX_FAULTS = 20  # samples that cannot be read, none before them either, after which the rest is not tried
_VERSION = 2  # of the stored form; part of the key, so that an older store is not taken for this one


def prepare_samples(  # noqa: PLR0913
    name: str,
    samples: Sequence[SourceSample],
    readers: Mapping[str, FileReader],
    classes: Sequence[str],
    dest: Path,
    *,
    key: Mapping[str, Any],
    task: TaskName = "multiclass",
    workers: int | None = None,
    max_rejected: float = 0.05,
    progress: bool = True,
) -> PrepareResult:
    """Decode every file of every sample once and store the arrays.

    The store is a folder ``<name>-<hash>`` in ``dest``: a ``.npy`` file of values and one of offsets per modality,
    ``targets.npy``, ``rejected.csv`` (id, file, reason) and ``manifest.json``, written last. The hash is that of the
    key, the readers' parameters, the classes and the samples with their files' names and sizes: a second call with
    the same does nothing, one with anything changed makes another folder.

    Until it is finished, the folder is ``.<name>-<hash>.partial`` with one file per decoded sample, written
    atomically. After an interruption the same call decodes only the samples that are missing or damaged there. At the
    end the files are packed, which takes as much room again.

    Samples are stored in their order, whatever the number of workers. A sample that cannot be read, whose label is no
    class or that has a ``problem`` is rejected with its reason.

    Args:
        name: First part of the folder's name: letters, digits, ``-`` and ``_``.
        samples: The samples, with unique ids.
        readers: A reader per modality.
        classes: Names of the classes or labels, in the order of the targets; none for ``regression``.
        dest: Folder in which the store is made.
        key: What else the samples depend on (options of the layout, checksums of lists), as JSON.
        task: What the samples' labels are: a class each, several labels separated by ``|``, or numbers.
        workers: Number of processes that decode; None for one per processor, 0 to decode in this process.
        max_rejected: Largest fraction of rejected samples, in [0, 1]. Above it no store is made, but progress is
            kept: a second call with a larger fraction ends at once.
        progress: Show a progress bar with an estimate of the time left.

    Raises:
        OSError: If ``dest`` cannot be written.
        ValueError: If an argument is wrong, another process prepares the same, no sample can be read, more than
            ``max_rejected`` are rejected, or the work was stopped by SIGTERM or a full disk.
    """
    form = TargetForm(task, tuple(classes))
    _check_arguments(samples, readers, form)
    check_unit_interval("max_rejected", max_rejected)
    workers = count_processors() if workers is None else check_integer("workers", workers, 0)
    key = plain_key({
        "key": dict(key),
        "version": _VERSION,
        "readers": {modality: dict(reader.parameters) for modality, reader in readers.items()},
        "classes": list(classes),
        "samples": _samples_checksum(samples),
        **({} if task == "multiclass" else {"task": task}),
    })  # fmt: skip
    folder = entry_folder(name, key, dest)
    if read_entry(folder, key) is not None:
        _remove_working_files(folder)
        return _make_result(folder, decoded=0)
    refuse_pointers(samples, max_rejected)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        (partial / PIECES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"The folder {dest} cannot be written: {error.strerror or error}.") from error
    with exit_on_sigterm(partial) as check_signal:
        with hold_lock(partial):
            if read_entry(folder, key) is not None:  # another process has finished it since
                shutil.rmtree(partial, ignore_errors=True)
                return _make_result(folder, decoded=0)
            unusable = [r for sample in samples if (r := _reject_unread(sample, form)) is not None]
            pieces, decoded, unreadable = _decode_missing(
                partial, samples, {r.id for r in unusable}, readers, check_signal, workers=workers, progress=progress
            )
            columns, stored, misfits = _select_fitting(samples, pieces, readers)
            rejections = {r.id: r for r in (*unusable, *unreadable, *misfits)}
            rejected = [rejections[sample.id] for sample in samples if sample.id in rejections]
            with keep_progress_on_oserror(partial):
                _write_rejected(partial, rejected)
                _check_rejected(partial, rejected, samples, max_rejected)
                _check_distinct(stored, readers)
                _write_store(partial, stored, columns, readers, form, key)
                if os.name != "nt":
                    move_into_place(partial, folder)
        if os.name == "nt":  # which renames no folder with an open file, the lock, in it
            with keep_progress_on_oserror(partial):
                move_into_place(partial, folder)
    return _make_result(folder, decoded=decoded)


def _check_arguments(samples: Sequence[SourceSample], readers: Mapping[str, FileReader], form: TargetForm) -> None:
    if not samples:
        raise ValueError("`samples` should hold at least one sample. Found none.")
    repeated = [name for name, number in collections.Counter(sample.id for sample in samples).items() if number > 1]
    if repeated:
        raise ValueError(
            f"`samples` should have unique ids. Found {len(repeated)} repeated, among them {repeated[:3]}."
        )
    if (not form.classes and form.task != "regression") or len(set(form.classes)) < len(form.classes):
        raise ValueError(f"`classes` should hold unique names. Found {list(form.classes)}.")
    for modality in readers:
        checked_name("modality", modality)
        if modality == "targets" or modality.endswith("_offsets"):
            raise ValueError(f"`readers` should not name a modality '{modality}': the store has a file of that name.")
    for sample in samples:
        if not {*sample.files, *sample.texts} <= set(readers):
            found = sorted([*sample.files, *sample.texts])
            raise ValueError(f"Sample '{sample.id}' should have files for {sorted(readers)}. Found {found}.")


def _samples_checksum(samples: Sequence[SourceSample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        files = {modality: [path.name, _size(path)] for modality, path in sample.files.items()}
        listed = [sample.id, sample.label, sample.split, sample.group, files, dict(sample.extra), sample.problem]
        content = [*listed, sample.interval, *([dict(sample.texts)] if sample.texts else [])]
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return source_bytes(path)
    except OSError:
        return -1  # the sample is rejected later, with the reason


def _decode_missing(
    partial: Path,
    samples: Sequence[SourceSample],
    unusable: set[str],
    readers: Mapping[str, FileReader],
    check_signal: Callable[[], None],
    *,
    workers: int,
    progress: bool,
) -> tuple[dict[str, Piece], int, list[Rejection]]:
    """Decode the samples without a valid piece.

    Returns:
        Pieces by id, number of decoded samples, and rejections.

    Raises:
        ValueError: If samples could not be read for a fault of the machine, which would be sealed as theirs.
    """
    pieces: dict[str, Piece] = {}
    tasks: list[DecodeTask] = []
    for index, sample in enumerate(samples):
        if sample.id in unusable:
            continue
        path = partial / PIECES / f"{index:08d}.npz"
        piece = read_piece(path, sample.id)
        if piece is None:
            tasks.append(DecodeTask(sample, path))
        else:
            pieces[sample.id] = piece
    rejected: list[Rejection] = []
    faults: list[Fault] = []
    results = decode_all(tasks, readers, min(workers, len(tasks)))
    with progress_bar(len(tasks), enabled=progress) as advance, contextlib.closing(results):
        for task, result in results:
            check_signal()
            if isinstance(result, Rejection):
                rejected.append(result)
            elif isinstance(result, Fault):
                faults.append(result)
                if len(faults) >= _MAX_FAULTS and not pieces:
                    break  # nothing can be read, so the others would be no better
            else:
                pieces[task.sample.id] = result
            advance(len(unusable) + len(rejected))
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(samples)} samples could not be read now, such as {faults[0].id}: "
            f"{faults[0].reason.rstrip('.')}. No file is blamed: mend the cause and give the same command again. What "
            "was read is kept."
        )
    return pieces, len(tasks), rejected


def _reject_unread(sample: SourceSample, form: TargetForm) -> Rejection | None:
    """Rejection of a sample before its files are read, or None."""
    file = str(next(iter(sample.files.values()), ""))
    if sample.problem is not None:
        return Rejection(sample.id, file, sample.problem)
    if (problem := form.find_problem(sample.label)) is not None:
        return Rejection(sample.id, file, problem)
    if not sample.files and not sample.texts:
        return Rejection(sample.id, file, "it has no file of any modality")
    return None


def _select_fitting(
    samples: Sequence[SourceSample], pieces: Mapping[str, Piece], readers: Mapping[str, FileReader]
) -> tuple[dict[str, Column], list[tuple[SourceSample, Piece]], list[Rejection]]:
    """Pack the pieces that fit each other.

    Returns:
        Their columns, their samples, and rejections of the others.
    """
    columns = {modality: Column(modality, reader.modality) for modality, reader in readers.items()}
    stored = []
    rejected = []
    for sample in samples:
        if (piece := pieces.get(sample.id)) is None:
            continue
        mismatches = {modality: column.find_mismatch(piece) for modality, column in columns.items()}
        modality = next((modality for modality, mismatch in mismatches.items() if mismatch), None)
        if modality is not None:
            rejected.append(Rejection(sample.id, str(sample.files.get(modality, "")), str(mismatches[modality])))
            continue
        for column in columns.values():
            column.add(piece)
        stored.append((sample, piece))
    return columns, stored, rejected


def _write_rejected(folder: Path, rejected: Sequence[Rejection]) -> None:
    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "file", "reason"])
            writer.writerows([r.id, r.file, " ".join(r.reason.split())] for r in rejected)

    atomic_write(folder / REJECTED, write)


def _check_rejected(
    partial: Path, rejected: Sequence[Rejection], samples: Sequence[SourceSample], max_rejected: float
) -> None:
    unlabelled = {sample.id for sample in samples if sample.unlabelled}
    faults, total = [r for r in rejected if r.id not in unlabelled], len(samples) - len(unlabelled)
    if len(faults) == total or len(faults) > max_rejected * total:
        example = f", such as {faults[0].id}: {faults[0].reason}" if faults else ""
        allow = "" if len(faults) == total else " What was read is kept: allow a larger fraction to go on."
        raise ValueError(
            f"{len(faults)} of {total} samples were rejected, more than the fraction of {max_rejected:g} that "
            f"`max_rejected` allows{example.rstrip('.')}. All are listed with reasons in {partial / REJECTED}.{allow}"
        )


def _check_distinct(stored: Sequence[tuple[SourceSample, Piece]], readers: Mapping[str, FileReader]) -> None:
    """Refuse two modalities with the same content."""
    sums = [{modality: file["sha256"] for modality, file in piece.files.items()} for _, piece in stored]
    made_by = {modality: dict(reader.parameters) for modality, reader in readers.items()}
    for (first, second), (equal, present) in equal_modalities(sums, made_by).items():
        if equal == present:
            raise ValueError(
                f"'{first}' and '{second}' have the same content in all {present} samples, so they are one modality. "
                "Leave one out, or name other files."
            )


def _write_store(
    folder: Path,
    stored: Sequence[tuple[SourceSample, Piece]],
    columns: Mapping[str, Column],
    readers: Mapping[str, FileReader],
    form: TargetForm,
    key: Mapping[str, Any],
) -> None:
    """Write values, offsets, targets and, last, the manifest."""
    arrays: dict[str, np.ndarray] = {"targets": form.array([sample.label for sample, _ in stored])}
    for modality, column in columns.items():
        arrays[f"{modality}_offsets"] = np.array(column.offsets, dtype=np.int64)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for modality, column in columns.items():
        path = folder / f"{modality}.npy"
        column.write(path, [piece for _, piece in stored])
        # An empty array cannot be mapped; the others may be larger than memory.
        arrays[modality] = np.load(path, mmap_mode="r" if column.offsets[-1] else None, allow_pickle=False)
    write_manifest(
        folder,
        key,
        arrays,
        classes=list(form.classes),
        modalities={m: {"kind": readers[m].modality.kind, "shape": list(c.shape)} for m, c in columns.items()},
        versions=_package_versions(),
        samples=[_describe(sample, piece.files) for sample, piece in stored],
    )


def _describe(sample: SourceSample, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Entry of a sample in the manifest."""
    return {
        "id": sample.id,
        "label": sample.label,
        "split": sample.split,
        "group": sample.id if sample.group is None else sample.group,
        "files": dict(files),
        "extra": dict(sample.extra),
    }


def move_into_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder and remove its working files."""
    if folder.exists():  # damaged: a whole one would have been used
        shutil.rmtree(folder)
    for leftover in partial.glob(".*.tmp"):  # of a process killed while it wrote
        leftover.unlink()
    partial.rename(folder)
    _remove_working_files(folder)


def _remove_working_files(folder: Path) -> None:
    """Remove pieces and lock, also those of a killed process."""
    shutil.rmtree(folder / PIECES, ignore_errors=True)
    for name in (LOCK, HOLDER):
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def _package_versions() -> dict[str, str]:
    versions = {"bmlr": __version__}
    for package in ("numpy", "av", "librosa", "soundfile", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _make_result(folder: Path, *, decoded: int) -> PrepareResult:
    store = open_store(folder)
    splits = np.array([sample.split or "" for sample in store.samples])
    names = [name for name in (*SPLITS, "") if name in splits]
    targets = {split: store.targets[splits == split] for split in names}
    counts = {split: count_classes(values, store.classes) for split, values in targets.items()}
    samples = {split: len(values) for split, values in targets.items()}
    numbers = {split: NumberRange.of(values) for split, values in targets.items() if store.task == "regression"}
    sizes = [] if any(names) else describe_drawn(len(store))
    equal = describe_equal(store.samples, store.key["readers"])
    notes = (*describe_counts(counts, samples), *sizes, *equal, *describe_repeats(store.samples))
    rejected = read_rejected(folder)
    return PrepareResult(folder, store.classes, counts, samples, rejected, decoded, notes, numbers, store.task)
