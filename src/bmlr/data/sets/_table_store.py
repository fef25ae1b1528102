"""CSV tables of files, decoded into a store."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._audio import AudioReader
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._container import check_installed
from bmlr.data.readers._flow import FlowReader, vertical_flow
from bmlr.data.readers._frame_arrays import FrameArrayReader, list_arrays
from bmlr.data.readers._images import ImageReader
from bmlr.data.readers._text import TextReader
from bmlr.data.readers._video import VideoReader
from bmlr.data.sets._media import make_audio_reader, make_video_reader, note_lengths
from bmlr.data.sets._table_files import FRAMES, FileTable, list_samples, read_table
from bmlr.data.store._build import prepare_samples
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._plausibility import check_labels, check_numbers, equal_modalities
from bmlr.data.store._samples import SourceSample
from bmlr.data.store._targets import TargetForm, TaskName

_SECONDS = 10.0  # of the spectrograms, unless given
_MIN_CLASSES = {"multiclass": 2, "multilabel": 1, "regression": 0}


def prepare_table(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Read the files of a table into a store.

    See :func:`read_table` and :func:`list_samples` for the table. Audio becomes the log spectrograms of the
    audio-visual data sets, 257 bins over ``options.seconds`` (10 by default); images and frames are resized to squares
    of ``options.size`` pixels; arrays are kept as float32.

    Args:
        source: The table.
        dest: Folder in which the folder ``manifest-<hash>`` is made.
        options: Options.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If the table cannot be read, or too many of its rows are rejected.
    """
    if options.lists:
        raise ValueError("Published lists are not for tables: write the split of each row in the column 'split'.")
    options.refuse("manifest", "file")
    table = read_table(source)
    path = table.path
    task, listed = table.task, list_samples(table, allow_outside=options.allow_outside)
    samples, notes = check_numbers(listed, path) if task == "regression" else check_labels(listed, path, task)
    _check_columns(table, samples)
    return store_files("manifest", table.kinds, samples, path, dest, options, task=task, notes=notes)


def store_files(
    layout: str,
    kinds: Mapping[str, str],
    samples: Sequence[SourceSample],
    source: Path,
    dest: Path,
    options: PrepareOptions,
    *,
    task: TaskName = "multiclass",
    notes: Sequence[str] = (),
) -> PrepareResult:
    """Read the files of listed samples into a store.

    Args:
        layout: Name of the data set.
        kinds: Kind of each modality, as in :class:`FileTable`.
        samples: The samples, their labels checked.
        source: Table or folder that lists them, for messages.
        dest: Folder in which the folder ``<layout>-<hash>`` is made.
        options: Options.
        task: What the labels are.
        notes: Notes of the result, before those on the files.

    Raises:
        ValueError: If there are too few classes, or too many samples are rejected.
    """
    classes = _classes(samples, task)
    if len(classes) < _MIN_CLASSES[task]:
        example = next((f" Rejected is, for instance, {sample.problem}." for sample in samples if sample.problem), "")
        wanted = "2 classes" if task == "multiclass" else "1 label"
        usable = f"Those that can be used are of '{classes[0]}'." if classes else "None can be used."
        raise ValueError(f"{source} should have samples of at least {wanted}. {usable}{example}")
    readers = _make_readers(kinds, samples, options)
    if any(isinstance(reader, (AudioReader, ImageReader, VideoReader)) for reader in readers.values()):
        check_installed()
    result = prepare_samples(
        layout,
        samples,
        readers,
        classes,
        dest,
        key={"layout": layout, "kinds": dict(kinds)},
        task=task,
        workers=options.workers,
        max_rejected=options.max_rejected,
        progress=options.progress,
    )
    result = note_lengths(result, readers)
    return dataclasses.replace(result, notes=(*notes, *result.notes))


def _check_columns(table: FileTable, samples: Sequence[SourceSample]) -> None:
    """Refuse two columns that name the same files and read them alike."""
    for (first, second), (equal, present) in equal_modalities(
        ({**s.files, **s.texts} for s in samples), table.kinds
    ).items():
        if equal < present:
            continue
        if table.kinds[first] == "video":
            sound = first if re.search("sound|audio|voice|speech|music", first, re.IGNORECASE) else second
            advice = f"both would be pictures. Head the one for the sound '{sound}:audio'"
        else:
            advice = "they are one modality. Leave one out"
        raise ValueError(
            f"{table.path}: the columns '{first}' and '{second}' name the same {table.kinds[first]} files, so that "
            f"{advice}."
        )


def _classes(samples: Sequence[SourceSample], task: TaskName) -> list[str]:
    """Labels of the usable samples, sorted, by number if all are numbers."""
    form = TargetForm(task)
    labels = {name for sample in samples if sample.problem is None for name in form.names(sample.label)}
    numbers = all(label.isascii() and label.isdecimal() and len(label) < 10 for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if numbers else sorted(labels)


def _make_readers(
    kinds: Mapping[str, str], samples: Sequence[SourceSample], options: PrepareOptions
) -> dict[str, FileReader]:
    """Reader of each modality of a table."""
    seconds = options.seconds or _SECONDS
    # Beside sound, video is read over the same time; alone it is read whole.
    video_seconds = seconds if "audio" in kinds.values() else options.seconds
    readers: dict[str, FileReader] = {}
    for name, kind in kinds.items():
        if kind == "audio":
            readers[name] = make_audio_reader(options, seconds)
        elif kind == "image":
            readers[name] = ImageReader(options.size, options.max_pixels)
        elif kind in FRAMES:
            video = make_video_reader(options, video_seconds)
            first = _first_file(name, samples)
            if kind != "video" and _holds_arrays(first):
                readers[name] = _array_reader(video)
            else:
                pair = kind == "flow" and first.parent.name == "u" and vertical_flow(first).parent.is_dir()
                readers[name] = FlowReader(**dataclasses.asdict(video)) if pair else video
        elif kind in {"text", "damaged text"}:
            readers[name] = TextReader("refuse" if kind == "text" else "replace")
        elif kind == "sequence" or (kind == "array" and _dimensions(name, samples) == 2):
            readers[name] = ArrayReader("sequence")
        else:
            readers[name] = ArrayReader("vector")
    return readers


def _array_reader(video: VideoReader) -> FrameArrayReader:
    return FrameArrayReader(video.size, video.fps, video.min_seconds, video.seconds, video.frame_rate)


def _first_file(name: str, samples: Sequence[SourceSample]) -> Path:
    """First file or folder of a column."""
    return next((sample.files[name] for sample in samples if sample.problem is None and name in sample.files), Path())


def _holds_arrays(path: Path) -> bool:
    """Whether a file or folder is of arrays, and not a video or images."""
    with contextlib.suppress(OSError):
        return bool(list_arrays(path)) if path.is_dir() else path.suffix.lower() == ".npy"
    return False  # its reader says what is wrong


def _dimensions(name: str, samples: Sequence[SourceSample]) -> int:
    """Number of dimensions of a column's first readable vector or sequence."""
    for sample in samples:
        if sample.problem is None and name in sample.files:
            try:
                values = np.load(sample.files[name], mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue  # rejected with the reason when it is read
            if isinstance(values, np.ndarray) and values.ndim in {1, 2}:
                return values.ndim
    return 1
