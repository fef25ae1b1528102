"""From files of any kind to arrays on disk: decoded once, in parallel, resumable, with every rejected clip listed."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from bmlr._checks import check_choice, check_integer, check_positive, check_unit_interval, nearest_name
from bmlr._files import atomic_write
from bmlr._version import __version__
from bmlr.data._base import Modality, PartName
from bmlr.data._cache import (
    checked_name,
    entry_folder,
    file_checksum,
    plain_key,
    read_entry,
    reason_of,
    write_manifest,
)

if TYPE_CHECKING:
    from rich.progress import Progress

_VERSION = 1  # of how the arrays are made; part of the key
_JOURNAL = "clips.jsonl"
_LOCK = "lock"
REJECTED = "rejected.csv"
_HEADER = 256  # bytes before the values in a growing .npy file, enough for any shape it may come to
_IN_FLIGHT = 4  # clips per worker that may be waiting: bounds memory, keeps all workers busy

# How each data set is prepared: module and function, called with (source, dest, options).
PREPARERS: dict[str, tuple[str, str]] = {
    "crema-d": ("bmlr.data._layouts", "prepare_crema_d"),
    "kinetics-sounds": ("bmlr.data._layouts", "prepare_kinetics_sounds"),
    "ave": ("bmlr.data._layouts", "prepare_ave"),
    "mosi": ("bmlr.data._sentiment", "prepare_mosi"),
    "mosei": ("bmlr.data._sentiment", "prepare_mosei"),
    "manifest": ("bmlr.data._manifest", "prepare_manifest"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample as its source describes it, before any file is read.

    Attributes:
        id: Name of the sample, unique in its data set.
        label: Name of its class.
        split: Part of the published split; None where there is none.
        group: What an honest split never shares between parts (actor, speaker, source video); None where every
            sample is a group of its own.
        files: The file of each modality; a modality left out is one the sample does not have.
        extra: What else is known, kept in the manifest: plain values as JSON holds them.
        problem: Why the sample cannot be used, where that is known without reading a file (not listed, no such
            file); it is rejected with this reason.
    """

    id: str
    label: str
    split: PartName | None = None
    group: str | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a reader found in a file.

    Attributes:
        values: The array to store.
        seconds: Length of the recording or film before it was cut or repeated; None for files without a duration.
    """

    values: np.ndarray
    seconds: float | None = None


class Reader(Protocol):
    """Turns a file of one modality into an array. Readers are sent to other processes, so they can be pickled."""

    @property
    def modality(self) -> Modality:
        """Form of the stored arrays. A first dimension of −1 differs from file to file; an empty shape is unknown.

        Where the shape is unknown, that of the first file read is required of all others.
        """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything the array depends on but the file, as JSON holds it: another value, another store."""

    def __call__(self, path: Path) -> Reading:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is unreadable, truncated, silent, too short, …; the message says what is wrong.
        """


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A sample that was left out: its name, the file at fault (or an empty text) and why."""

    id: str
    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """A stored sample.

    Attributes:
        id: Name of the sample.
        label: Name of its class.
        split: Part of the published split; None where there is none.
        group: What an honest split never shares between parts; the sample's name where there is nothing else.
        files: Name, size (``bytes``) and ``sha256`` of each modality's file, and its duration in ``seconds``.
        extra: What else is known.
    """

    id: str
    label: str
    split: PartName | None
    group: str
    files: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Store:
    """Prepared samples on disk, memory-mapped. The files they came from are not needed any more.

    Attributes:
        folder: Where it is.
        classes: Names of the classes, in the order of the targets.
        clips: The samples.
        targets: Class indices, shape (N,), int64.
        modalities: Form of each modality's stored arrays; a first dimension of −1 differs between samples.
        arrays: Values of each modality. Sample i has rows ``offsets[name][i]`` to ``offsets[name][i + 1]``: one row
            where the shape is fixed, as many as there are frames or steps where it is not, none where the sample
            lacks the modality.
        offsets: Where each sample's rows begin, shape (N + 1,), by modality.
        key: What the store was made with.
    """

    folder: Path
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    targets: np.ndarray
    modalities: Mapping[str, Modality]
    arrays: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]
    key: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.clips)

    def present(self, name: str) -> np.ndarray:
        """Which samples have modality ``name``, a boolean array of shape (N,)."""
        found: np.ndarray = np.diff(self.offsets[name]) > 0
        return found

    def values(self, name: str, sample: int) -> np.ndarray:
        """The rows of one sample: shape (1, …) where the shape is fixed, (T, …) where it is not."""
        start, end = self.offsets[name][sample : sample + 2]
        rows: np.ndarray = self.arrays[name][start:end]
        return rows


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        folder: The prepared data.
        classes: Names of the classes.
        counts: Number of stored samples by published part ("" where there is none) and class.
        rejected: The samples left out.
        decoded: Number of samples read by this very call: zero where all was there already.
        notes: What was found in the files and done about it, a sentence each.
    """

    folder: Path
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    rejected: tuple[Rejection, ...]
    decoded: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of :func:`prepare`; those that a data set has no use for are refused by it.

    Attributes:
        workers: Processes that decode; None takes one per processor, 0 decodes in this process.
        size: Height and width of the stored frames in pixels.
        fps: Stored frames per second.
        seconds: Length of the spectrograms' clips; None takes the data set's (CREMA-D 3, the others 10).
        dtype: Type of the stored spectrograms.
        train_list: Published list of the training part.
        val_list: Published list of the validation part.
        test_list: Published list of the test part.
        file: Name of the published file, where a folder holds several (MOSI, MOSEI).
        max_rejected: Share of rejected samples above which the preparation fails.
        progress: Show a progress bar.
    """

    workers: int | None = None
    size: int = 224
    fps: float = 1.0
    seconds: float | None = None
    dtype: Literal["float16", "float32"] = "float16"
    train_list: Path | None = None
    val_list: Path | None = None
    test_list: Path | None = None
    file: str | None = None
    max_rejected: float = 0.05
    progress: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_integer("workers", self.workers, 0)
        check_integer("size", self.size, 8)
        check_positive("fps", self.fps)
        if self.seconds is not None:
            check_positive("seconds", self.seconds)
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_unit_interval("max_rejected", self.max_rejected)

    def refuse(self, data: str, *names: str) -> None:
        """Raise a ValueError if one of the options named, for which ``data`` has no use, was given."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise ValueError(
                    f"Option `{field.name}` should be left out for '{data}'. Found `{field.name} = {value}`."
                )

    @property
    def lists(self) -> dict[PartName, Path]:
        """The published lists that were given, by part."""
        given: dict[PartName, Path | None] = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        return {part: Path(path) for part, path in given.items() if path is not None}


def prepare(name: str, source: Path, dest: Path, options: PrepareOptions | None = None) -> Prepared:
    """Prepare a data set by its name from the folder or file its publisher offers.

    Args:
        name: Name of the data set.
        source: What was downloaded.
        dest: Folder in which the folder of the prepared data is made.
        options: Options.

    Raises:
        FileNotFoundError: If a folder or list is missing.
        ValueError: If the name or an option is wrong, or too many samples are rejected.
    """
    check_choice("data", name, PREPARERS)
    module, function = PREPARERS[name]
    result: Prepared = getattr(importlib.import_module(module), function)(
        Path(source), Path(dest), options or PrepareOptions()
    )
    return result


def prepare_items(
    name: str,
    items: Sequence[Item],
    readers: Mapping[str, Reader],
    classes: Sequence[str],
    dest: Path,
    *,
    key: Mapping[str, Any],
    workers: int | None = None,
    max_rejected: float = 0.05,
    progress: bool = True,
) -> Prepared:
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
    workers = _processors() if workers is None else check_integer("workers", workers, 0)
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
    with _stoppable(partial) as check:
        with _lock(partial), contextlib.closing(_Journal(partial, readers)) as journal:
            decoded, rejected = _read_all(journal, items, readers, classes, check, workers=workers, progress=progress)
            with _written(partial):
                _write_rejected(partial, rejected)
                _check_share(partial, rejected, len(items), max_rejected)
                _finish(journal, items, readers, classes, key)
        with _written(partial):
            _move(partial, folder)
    return _prepared(folder, decoded=decoded)


def open_store(folder: Path, *, verify: bool = False) -> Store:
    """Open prepared data.

    Args:
        folder: What :func:`prepare_items` made.
        verify: Compare the files' SHA-256 sums too, which reads them whole.

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
        modalities = {m: Modality(e["kind"], tuple(e["shape"])) for m, e in manifest["modalities"].items()}
        return Store(
            folder=folder,
            classes=tuple(manifest["classes"]),
            clips=tuple(Clip(**clip) for clip in manifest["clips"]),
            targets=np.array(arrays["targets"]),
            modalities=modalities,
            arrays={m: arrays[m] for m in modalities},
            offsets={m: np.array(arrays[f"{m}_offsets"]) for m in modalities},
            key=manifest["key"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not prepared data: its manifest has no {error}.") from error


def find_store(root: Path, name: str) -> Path:
    """The folder of the prepared data set ``name``: ``root`` itself, or the only one in it.

    Raises:
        FileNotFoundError: If there is none; the message says how to make it.
        ValueError: If there are several; the message lists them.
    """
    root = Path(root)
    if (root / "manifest.json").is_file():
        return root
    found = sorted(path.parent for path in root.glob(f"{name}-*/manifest.json") if path.parent.name[0] != ".")
    if not found:
        raise FileNotFoundError(
            f"There is no prepared '{name}' in {root}. Make it with: bmlr prepare {name} SOURCE {root}"
        )
    if len(found) > 1:
        raise ValueError(
            f"Parameter `root` should be one prepared folder: {root} holds {len(found)}. "
            f"Choose one of {', '.join(map(str, found))}."
        )
    return found[0]


def read_rejected(folder: Path) -> tuple[Rejection, ...]:
    """The samples that were left out when ``folder`` was prepared."""
    with (Path(folder) / REJECTED).open(encoding="utf-8", newline="") as file:
        return tuple(Rejection(row["id"], row["file"], row["reason"]) for row in csv.DictReader(file))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_arguments(items: Sequence[Item], readers: Mapping[str, Reader], classes: Sequence[str]) -> None:
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
            raise ValueError(f"Item '{item.id}' should have files for {sorted(known)}. Found {sorted(item.files)}.")


def _items_checksum(items: Sequence[Item]) -> str:
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


@contextlib.contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Hold the folder for this process. The system lets go of it when the process ends, however it ends."""
    with (partial / _LOCK).open("w") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows; two preparations at once are the user's to avoid there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is preparing the same data in {partial}. Wait for it to end.") from error
        yield


class _Stopped(BaseException):
    """SIGTERM has come. It is no Exception: the guard around the readers would take that for a fault of a file."""


@contextlib.contextmanager
def _stoppable(partial: Path) -> Iterator[Callable[[], None]]:
    """Let SIGTERM end the block with a ValueError; yields a check for a signal whose exception a library swallowed."""
    came = threading.Event()

    def stop(*_: Any) -> None:
        came.set()
        raise _Stopped

    def check() -> None:
        if came.is_set():
            raise _Stopped

    caught = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    try:
        if caught:
            signal.signal(signal.SIGTERM, stop)
        yield check
    except _Stopped:
        raise ValueError(
            f"The preparation in {partial} was stopped by SIGTERM. What was read is kept: the same call goes on from "
            "there."
        ) from None
    finally:
        if caught:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Say of an error of the system that what was read is kept."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {reason_of(error)}. What was read is kept: the same call goes on from there."
        ) from error


class _Growing:
    """A ``.npy`` file that grows by whole samples; its header is written when the number of rows is known."""

    def __init__(self, path: Path, modality: Modality) -> None:
        self.modality = modality
        self.ragged = modality.shape[:1] == (-1,)
        shape = modality.shape[1:] if self.ragged else modality.shape
        self.row_shape: tuple[int, ...] | None = tuple(shape) or None
        self.dtype: np.dtype[Any] | None = None
        self.offsets = [0]
        path.touch()
        self.file: IO[bytes] = path.open("r+b")
        self.path = path
        self.end = _HEADER

    def complaint(self, values: np.ndarray) -> str | None:
        """Why an array cannot be stored beside the others; None where it can."""
        row = values.shape[1:] if self.ragged else values.shape
        if values.dtype.hasobject:
            return f"holds values of type {values.dtype}, not numbers"
        if not values.size:
            return f"holds no values (shape {values.shape})"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return "holds NaN or infinity"
        if self.row_shape is not None and row != self.row_shape:
            wanted = (-1, *self.row_shape) if self.ragged else self.row_shape
            return f"has shape {values.shape}, where {wanted} is expected"
        if self.dtype is not None and values.dtype != self.dtype:
            return f"has type {values.dtype}, where {self.dtype} is expected"
        return None

    def append(self, values: np.ndarray | None) -> dict[str, Any] | None:
        """Write one sample (None: the modality is absent); what the journal needs to find it again."""
        if values is None:
            self.offsets.append(self.offsets[-1])
            return None
        content = values.tobytes()  # in C order, whatever the array's
        self.file.seek(self.end)
        self.file.write(content)
        self.file.flush()
        entry = {"shape": list(values.shape), "dtype": values.dtype.str, "crc": zlib.crc32(content)}
        self._advance(entry)
        return entry

    def restore(self, entry: Mapping[str, Any] | None) -> bool:
        """Take up a sample that is in the file already; False where it is not there whole."""
        if entry is None:
            self.offsets.append(self.offsets[-1])
            return True
        size = int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize
        self.file.seek(self.end)
        content = self.file.read(size)
        if len(content) < size or zlib.crc32(content) != entry["crc"]:
            return False
        self._advance(entry)
        return True

    def _advance(self, entry: Mapping[str, Any]) -> None:
        shape = tuple(entry["shape"])
        self.dtype = np.dtype(entry["dtype"])
        self.row_shape = shape[1:] if self.ragged else shape
        self.offsets.append(self.offsets[-1] + (shape[0] if self.ragged else 1))
        self.end += int(np.prod(shape)) * self.dtype.itemsize

    def finish(self) -> tuple[int, ...]:
        """Write the header; the shape of a stored sample, −1 where it differs."""
        row = self.row_shape or ()
        dtype = np.dtype(np.float32) if self.dtype is None else self.dtype  # only if no sample has the modality
        described = {"descr": dtype.str, "fortran_order": False, "shape": (self.offsets[-1], *row)}
        text = repr(described).encode("latin1").ljust(_HEADER - 11) + b"\n"
        self.file.truncate(self.end)
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        self.file.flush()
        os.fsync(self.file.fileno())
        return (-1, *row) if self.ragged else row


class _Journal:
    """The stored samples of an unfinished preparation: the growing arrays and a line of JSON per sample."""

    def __init__(self, folder: Path, readers: Mapping[str, Reader]) -> None:
        self.folder = folder
        self.arrays = {m: _Growing(folder / f"{m}.npy", reader.modality) for m, reader in readers.items()}
        self.entries: dict[str, dict[str, Any]] = {}
        path = folder / _JOURNAL
        path.touch()
        self.file: IO[bytes] = path.open("r+b")
        self._restore()

    def _restore(self) -> None:
        """Take up the samples written before; at the first that is not there whole, drop it and all after it."""
        end = 0
        for line in self.file:
            entry = _from_line(line)
            if entry is None or set(entry["stored"]) != set(self.arrays):
                break
            before = {m: (array.end, len(array.offsets)) for m, array in self.arrays.items()}
            if not all(array.restore(entry["stored"][m]) for m, array in self.arrays.items()):
                for m, (place, length) in before.items():
                    self.arrays[m].end = place
                    del self.arrays[m].offsets[length:]
                break
            self.entries[entry["id"]] = entry
            end += len(line)
        self.file.seek(end)
        self.file.truncate()

    def add(self, item: Item, readings: Mapping[str, tuple[Reading, Mapping[str, Any]]]) -> Rejection | None:
        """Store a sample; a rejection where its arrays do not fit the others."""
        for modality, (reading, _) in readings.items():
            if complaint := self.arrays[modality].complaint(reading.values):
                return Rejection(item.id, str(item.files[modality]), f"{modality} {complaint}")
        with _written(self.folder):
            stored = {
                m: array.append(readings[m][0].values if m in readings else None) for m, array in self.arrays.items()
            }
            entry = {"id": item.id, "stored": stored, "files": {m: dict(about) for m, (_, about) in readings.items()}}
            self.file.write(_to_line(entry))
            self.file.flush()
        self.entries[item.id] = entry
        return None

    def close(self) -> None:
        """Close all files; what a full disk could not take has been told of before."""
        for file in (self.file, *(array.file for array in self.arrays.values())):
            with contextlib.suppress(OSError):
                file.close()


def _to_line(entry: Mapping[str, Any]) -> bytes:
    """An entry as a line of the journal, its checksum first."""
    content = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _from_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line of the journal; None if the line is not what was written, or not all of it."""
    checksum, _, content = line.partition(b" ")
    if not content.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(content[:-1]):
        return None
    entry: dict[str, Any] = json.loads(content)
    return entry


_Result = dict[str, tuple[Reading, dict[str, Any]]] | Rejection


def _read_item(item: Item, readers: Mapping[str, Reader]) -> _Result:
    """Read the files of one item, in a worker."""
    readings: dict[str, tuple[Reading, dict[str, Any]]] = {}
    for modality, path in item.files.items():
        try:
            reading = readers[modality](path)
            about = {"name": path.name, "bytes": path.stat().st_size, "sha256": file_checksum(path)}
        except ImportError:
            raise
        except Exception as error:  # one bad file, whatever it does to its decoder, must not end hours of work
            known = isinstance(error, (ValueError, FileNotFoundError))
            return Rejection(item.id, str(path), str(error) if known else f"{type(error).__name__}: {error}")
        readings[modality] = (reading, {**about, "seconds": reading.seconds})
    return readings


def _read_all(
    journal: _Journal,
    items: Sequence[Item],
    readers: Mapping[str, Reader],
    classes: Sequence[str],
    check: Callable[[], None],
    *,
    workers: int,
    progress: bool,
) -> tuple[int, list[Rejection]]:
    """Read what is not in the journal yet; the number read, and the rejections in the order of the items."""
    rejected = {item.id: r for item in items if (r := _reject_unread(item, classes)) is not None}
    waiting = [item for item in items if item.id not in journal.entries and item.id not in rejected]
    results = _results(waiting, readers, min(workers, len(waiting)))
    with _bar(len(waiting), enabled=progress) as advance, contextlib.closing(results):
        for item, result in results:
            check()
            found = result if isinstance(result, Rejection) else journal.add(item, result)
            if found is not None:
                rejected[item.id] = found
            advance(len(rejected))
    return len(waiting), [rejected[item.id] for item in items if item.id in rejected]


def _reject_unread(item: Item, classes: Sequence[str]) -> Rejection | None:
    file = str(next(iter(item.files.values()), ""))
    if item.problem is not None:
        return Rejection(item.id, file, item.problem)
    if item.label not in classes:
        return Rejection(item.id, file, f"its label '{item.label}' is no class.{nearest_name(item.label, classes)}")
    if not item.files:
        return Rejection(item.id, file, "it has no file of any modality")
    return None


def _results(items: Sequence[Item], readers: Mapping[str, Reader], workers: int) -> Generator[tuple[Item, _Result]]:
    """The items with what was read, in their order."""
    if not workers:
        for item in items:
            yield item, _read_item(item, readers)
        return
    start = 0
    while start < len(items):  # again after a crash of a decoder, which ends all processes of the pool
        try:
            for item, result in _pooled(items[start:], readers, workers):
                yield item, result
                start += 1
        except BrokenProcessPool:
            _check_start()
            stop = min(start + workers * _IN_FLIGHT, len(items))
            for item in items[start:stop]:  # one of these did it: each in a process of its own
                yield item, _read_alone(item, readers)
            start = stop


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned rather than forked: threads of torch and locks of FFmpeg do not survive a fork.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Leave an interruption to the parent, end with it, and leave the other processors to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(parent: Any) -> None:
    """End this process with its parent: it would wait for work for ever after one that was killed."""
    parent.join()
    os._exit(1)


def _pooled(items: Sequence[Item], readers: Mapping[str, Reader], workers: int) -> Iterator[tuple[Item, _Result]]:
    pool = _pool(workers)
    try:
        waiting: collections.deque[tuple[Item, Future[_Result]]] = collections.deque()
        coming = iter(items)
        while True:
            while len(waiting) < workers * _IN_FLIGHT and (item := next(coming, None)) is not None:
                waiting.append((item, pool.submit(_read_item, item, dict(readers))))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_start() -> None:
    """Raise unless a worker starts at all: a script that prepares on import starts itself again in every worker."""
    with _pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "The worker processes cannot start. In a script, call this under `if __name__ == '__main__':`, "
                "or pass `workers = 0`."
            ) from error


def _read_alone(item: Item, readers: Mapping[str, Reader]) -> _Result:
    with _pool(1) as pool:
        try:
            return pool.submit(_read_item, item, dict(readers)).result()
        except BrokenProcessPool:
            file = str(next(iter(item.files.values())))
            return Rejection(item.id, file, "the process that read it crashed or was killed (memory?)")


@contextlib.contextmanager
def _bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left; yields what moves it on by one clip."""
    if not enabled or not total:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Estimate

    columns = (
        TextColumn("decoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips, {task.fields[rejected]} rejected,"),
        TimeElapsedColumn(),
        TextColumn("passed,"),
        Estimate(),
        TextColumn("left"),
    )
    bar: Progress
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, rejected=0)
        yield lambda rejected: bar.update(task, advance=1, rejected=rejected)


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
            f"{len(rejected)} of {total} clips were rejected, more than the share of {max_rejected:g} that "
            f"`max_rejected` allows{example.rstrip('.')}. All are listed with reasons in {partial / REJECTED}.{allow}"
        )


def _finish(
    journal: _Journal,
    items: Sequence[Item],
    readers: Mapping[str, Reader],
    classes: Sequence[str],
    key: Mapping[str, Any],
) -> None:
    """Write headers, offsets, targets and, last, the manifest."""
    by_id = {item.id: item for item in items}
    clips = [_about(by_id[name], entry["files"]) for name, entry in journal.entries.items()]
    numbers = {label: number for number, label in enumerate(classes)}
    small = {"targets": np.array([numbers[clip["label"]] for clip in clips], dtype=np.int64)}
    modalities = {}
    for modality, array in journal.arrays.items():
        modalities[modality] = {"kind": readers[modality].modality.kind, "shape": list(array.finish())}
        small[f"{modality}_offsets"] = np.array(array.offsets, dtype=np.int64)
    for name, values in small.items():
        np.save(journal.folder / f"{name}.npy", values)
    large = {m: np.load(journal.folder / f"{m}.npy", mmap_mode="r" if a.offsets[-1] else None, allow_pickle=False)
             for m, a in journal.arrays.items()}  # fmt: skip
    about = {"classes": list(classes), "modalities": modalities, "versions": _versions(), "clips": clips}
    write_manifest(journal.folder, key, {**small, **large}, **about)


def _about(item: Item, files: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item.id,
        "label": item.label,
        "split": item.split,
        "group": item.id if item.group is None else item.group,
        "files": dict(files),
        "extra": dict(item.extra),
    }


def _move(partial: Path, folder: Path) -> None:
    """Put the whole folder in its place."""
    if folder.exists():  # not whole, or it would have been used
        shutil.rmtree(folder)
    for leftover in partial.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    partial.rename(folder)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove what the folder had need of while it was made."""
    for leftover in (_JOURNAL, _LOCK):
        with contextlib.suppress(OSError):
            (folder / leftover).unlink()


def _versions() -> dict[str, str]:
    found = {"bmlr": __version__}
    for package in ("numpy", "av", "librosa", "soundfile", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _prepared(folder: Path, *, decoded: int) -> Prepared:
    store = open_store(folder)
    counts: dict[str, dict[str, int]] = {}
    for clip in store.clips:
        by_class = counts.setdefault(clip.split or "", dict.fromkeys(store.classes, 0))
        by_class[clip.label] += 1
    return Prepared(folder, store.classes, counts, read_rejected(folder), decoded)
