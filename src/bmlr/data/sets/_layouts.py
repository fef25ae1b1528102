"""What the published folders of CREMA-D, Kinetics-Sounds and AVE look like, and how each becomes a list of items."""

from __future__ import annotations

import collections
import csv
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmlr.data._base import SplitName
from bmlr.data.readers._audio import AudioReader
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._container import check_installed
from bmlr.data.readers._video import VIDEO_SUFFIXES, VideoReader
from bmlr.data.store._build import prepare_samples
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import SourceSample
from bmlr.data.transforms._spectrogram import Spectrogram

#: The emotions of CREMA-D, in the order of the published code.
EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")


_CREMA_D_NAME = re.compile(r"([0-9]{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")  # 1040_ITH_SAD_X lacks a letter


_KINETICS_NAME = re.compile(r"(.+)_[0-9]{1,6}_[0-9]{1,6}")


_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val", "test": "test",
}  # fmt: skip


_NAME_COLUMNS = ("name", "video", "video_id", "videoid", "id", "file", "filename", "youtube_id")


_AVE_LISTS: dict[SplitName, str] = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclasses.dataclass(frozen=True)
class Listed:
    """A line of a published list.

    Attributes:
        name: Name of the clip, without folder and suffix.
        label: Name or number of its class.
        split: Split of the list.
    """

    name: str
    label: str
    split: SplitName


def audio_reader(seconds: float, dtype: str = "float16") -> AudioReader:
    """The spectrogram of the audio-visual baselines over a clip of ``seconds``: 257 bins, 188 frames for 3 seconds.

    One channel at 22,050 Hz, repeated until the clip is full or cut, limited to [−1, 1], a window of 512 samples with
    a step of 353, log(|STFT| + 1e-7).
    """
    spectrogram = Spectrogram(22050, n_fft=512, hop_length=353, n_mels=None, seconds=seconds, fill="repeat")
    return AudioReader(spectrogram, "float32" if dtype == "float32" else "float16")


def prepare_crema_d(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Prepare CREMA-D, see :func:`crema_d_samples`."""
    return _prepare("crema-d", crema_d_samples(source, options.lists), EMOTIONS, dest, options, seconds=3.0)


def prepare_kinetics_sounds(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Prepare Kinetics-Sounds, see :func:`kinetics_sounds_samples`."""
    items = kinetics_sounds_samples(source, options.lists)
    return _prepare("kinetics-sounds", items, _labels(items), dest, options, seconds=10.0)


def prepare_ave(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Prepare AVE, see :func:`ave_samples`."""
    items = ave_samples(source, options.lists)
    return _prepare("ave", items, _labels(items), dest, options, seconds=10.0)


def _prepare(
    name: str,
    items: Sequence[SourceSample],
    classes: Sequence[str],
    dest: Path,
    options: PrepareOptions,
    *,
    seconds: float,
) -> PrepareResult:
    check_installed()
    options.refuse(name, "file")
    readers: dict[str, FileReader] = {
        "audio": audio_reader(options.seconds or seconds, options.dtype),
        "video": VideoReader(options.size, options.fps),
    }
    return prepare_samples(
        name,
        items,
        readers,
        classes,
        dest,
        key={"layout": name},
        workers=options.workers,
        max_rejected=options.max_rejected,
        progress=options.progress,
    )


def _labels(items: Iterable[SourceSample]) -> list[str]:
    labels = sorted({item.label for item in items if item.problem is None})
    if not labels:
        first = next((item for item in items), None)
        example = f", such as {first.id}: {first.problem}" if first is not None else ""
        raise ValueError(f"No clip of the source can be used{example}.")
    return labels


def crema_d_samples(source: Path, lists: Mapping[SplitName, Path] | None = None) -> list[SourceSample]:
    """The clips of CREMA-D.

    A clip is ``AudioWAV/<name>.wav`` with ``VideoFlash/<name>.flv``, where the name says actor, sentence, emotion and
    level: ``1041_TIE_NEU_XX``. The group is the actor.

    Args:
        source: Folder that holds ``AudioWAV`` and ``VideoFlash``.
        lists: Published lists by split: lines of name and label, separated by commas or spaces; a third field is left
            unread. Without lists, clips have no published split. With lists, clips on none are rejected.

    Returns:
        The clips by name. With a problem are those with a misformed name or without one of the files, those listed
        twice, with another label or not at all.

    Raises:
        FileNotFoundError: If a folder or list is missing, or there are no clips.
        ValueError: If a list cannot be read.
    """
    wavs = _files_by_stem(_folder(source, "AudioWAV"), {".wav"})
    videos = _files_by_stem(_folder(source, "VideoFlash"), {".flv"})
    listed = _read_lists(lists or {}, label_field=1)
    items = []
    for name in sorted({*wavs, *videos, *listed}):
        files = {m: found[name][0] for m, found in (("audio", wavs), ("video", videos)) if name in found}
        match = _CREMA_D_NAME.fullmatch(name)
        lines = listed.get(name, [])
        actor, sentence, emotion, level = match.groups() if match else ("", "", "", "")
        problem = (
            (None if match else "its name should be actor_sentence_emotion_level, as 1041_TIE_NEU_XX")
            or (f"there is no {name}.wav in AudioWAV" if "audio" not in files else None)
            or (f"there is no {name}.flv in VideoFlash" if "video" not in files else None)
            or _list_problem(lines, lists or {}, emotion)
        )
        split = lines[0].split if lines else None
        items.append(SourceSample(name, emotion, split, actor, files, {"sentence": sentence, "level": level}, problem))
    return items


def kinetics_sounds_samples(source: Path, lists: Mapping[SplitName, Path] | None = None) -> list[SourceSample]:
    """The clips of Kinetics-Sounds.

    Videos are looked for in ``source`` and all folders below, so that all common layouts are read: per-class folders,
    such folders in ``train``, ``val`` and ``test``, and one flat folder with lists. The class is what the list says;
    where that is a number and each folder holds the videos of one, or there is no list, it is the video's folder. The
    split is that of the list, or of the folder. The group is the source video: the name without the times at its end
    (``<video>_000010_000020.mp4``).

    Args:
        source: Folder of the videos.
        lists: Published lists by split: comma-separated lines that begin with the name and end with the label, or
            with a header (name and label columns; Kinetics' own ``label,youtube_id,time_start,time_end`` too).

    Returns:
        The clips by name. With a problem are those listed and not found, found and not listed, listed or found twice,
        or without a class.

    Raises:
        FileNotFoundError: If the folder or a list is missing, or there are no videos.
        ValueError: If a list cannot be read.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}.")
    videos = _files_by_stem(source, set(VIDEO_SUFFIXES), below=True)
    listed = _read_lists(lists or {}, label_field=-1)
    places = {name: _place(paths[0], source) for name, paths in videos.items()}
    named = _folders_are_classes({name: folder for name, (folder, _) in places.items()}, listed)
    items = []
    for name in sorted({*videos, *listed}):
        lines, paths = listed.get(name, []), videos.get(name, [])
        folder_class, folder_split = places.get(name, (None, None))
        by_folder = not lines or (lines[0].label.isdecimal() and named and folder_class is not None)
        label = folder_class if by_folder else lines[0].label
        problem = (
            (f"it is in {lines[0].split}'s list, but there is no such video" if not paths else None)
            or (f"there are {len(paths)} videos of this name: {', '.join(map(str, paths))}" if len(paths) > 1 else None)
            or _list_problem(lines, lists or {}, None)
            or (None if label else "it is in no folder of a class and on no list")
        )
        match = _KINETICS_NAME.fullmatch(name)
        files = {"audio": paths[0], "video": paths[0]} if paths else {}
        split = lines[0].split if lines else folder_split
        items.append(SourceSample(name, label or "", split, match[1] if match else name, files, {}, problem))
    return items


def ave_samples(source: Path, lists: Mapping[SplitName, Path] | None = None) -> list[SourceSample]:
    """The events of AVE.

    ``Annotations.txt`` and the lists ``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` hold lines
    ``Category&VideoID&Quality&StartTime&EndTime``, with or without that header; videos are ``AVE/<VideoID>.mp4``. A
    line is a sample. Some videos have several lines: the first sample is named by the video, further ones
    ``<VideoID>#2`` and so on; all have the video as their group. The times of the event within the video's ten
    seconds are kept, the whole video is read.

    Args:
        source: Folder that holds ``AVE`` and ``Annotations.txt``.
        lists: Lists by split, in place of those in ``source``.

    Returns:
        The samples in the order of the annotations. With a problem are lines that are misformed or repeated, lines
        without a video, videos without a line, and lines in no list where there are lists.

    Raises:
        FileNotFoundError: If the folder or the annotations are missing, or there are no videos.
        ValueError: If a file is not text.
    """
    source = Path(source)
    videos = _files_by_stem(_folder(source, "AVE"), {".mp4"})
    if not (source / "Annotations.txt").is_file():
        raise FileNotFoundError(f"There is no Annotations.txt in {source}.")
    chosen: dict[SplitName, Path] = {p: source / name for p, name in _AVE_LISTS.items() if (source / name).is_file()}
    chosen.update(lists or {})
    splits: dict[_Event, list[SplitName]] = collections.defaultdict(list)
    items: list[SourceSample] = []
    events: dict[_Event, None] = {}  # ordered
    for split, path in ((None, source / "Annotations.txt"), *chosen.items()):
        for line, event in _read_events(path):
            if event is None or (event in events if split is None else split in splits[event]):
                problem = "its line repeats an earlier one" if event else f"its line is misformed: {line!r}"
                items.append(SourceSample(f"{path.name}:{line[:80]}#{len(items)}", "", split, problem=problem))
                continue
            events.setdefault(event)
            if split is not None:
                splits[event].append(split)
    numbers: collections.Counter[str] = collections.Counter()
    for event in events:
        numbers[event.video] += 1
        items.append(_event_item(event, numbers[event.video], splits[event], videos, listed=bool(chosen)))
    return items + [
        SourceSample(name, "", None, name, {"video": videos[name][0]}, problem="it is not in Annotations.txt")
        for name in sorted(set(videos) - set(numbers))
    ]


@dataclasses.dataclass(frozen=True)
class _Event:
    category: str
    video: str
    quality: str = dataclasses.field(compare=False)
    start: float
    end: float


def _event_item(
    event: _Event, number: int, splits: Sequence[SplitName], videos: Mapping[str, Sequence[Path]], *, listed: bool
) -> SourceSample:
    files = dict.fromkeys(("audio", "video"), videos[event.video][0]) if event.video in videos else {}
    problem = (
        (None if files else f"there is no {event.video}.mp4 in AVE")
        or (f"it is listed {len(splits)} times: in {', '.join(splits)}" if len(splits) > 1 else None)
        or ("it is on none of the lists" if listed and not splits else None)
    )
    extra: dict[str, Any] = {"start": event.start, "end": event.end, "quality": event.quality}
    name = event.video if number == 1 else f"{event.video}#{number}"
    return SourceSample(name, event.category, splits[0] if splits else None, event.video, files, extra, problem)


def _read_events(path: Path) -> Iterable[tuple[str, _Event | None]]:
    """Lines of an AVE file and what they say; None for a misformed one."""
    for text in _lines(path):
        fields = [field.strip() for field in text.split("&")]
        if fields[:2] == ["Category", "VideoID"]:
            continue
        try:
            category, video, quality, start, end = fields
            event = _Event(category, video, quality, float(start), float(end))
        except ValueError:
            yield text, None
            continue
        yield text, event if category and video else None


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list {path}.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _folder(source: Path, name: str) -> Path:
    folder = Path(source) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {name} in {source}.")
    return folder


def _files_by_stem(folder: Path, suffixes: set[str], *, below: bool = False) -> dict[str, list[Path]]:
    """The files with one of the suffixes by their name without it, whatever the order of the directory."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*") if below else folder.iterdir()):
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
            found.setdefault(path.stem, []).append(path)
    if not found:
        raise FileNotFoundError(f"There are no {', '.join(sorted(suffixes))} files in {folder}.")
    return found


def _place(path: Path, source: Path) -> tuple[str | None, SplitName | None]:
    """Class and split that the folders between ``source`` and a video say."""
    folders = path.relative_to(source).parts[:-1]
    split = next((_SPLIT_FOLDERS[folder.lower()] for folder in folders if folder.lower() in _SPLIT_FOLDERS), None)
    last = folders[-1] if folders else None
    return (None if last is None or last.lower() in _SPLIT_FOLDERS else last), split


def _folders_are_classes(folders: Mapping[str, str | None], listed: Mapping[str, Sequence[Listed]]) -> bool:
    """Whether the folders of the videos tell their classes apart as the lists do, so that they can name them."""
    numbers: dict[str, set[str]] = collections.defaultdict(set)
    for name, folder in folders.items():
        if folder is not None and name in listed:
            numbers[folder].add(listed[name][0].label)
    return all(len(found) == 1 for found in numbers.values())


def _read_lists(lists: Mapping[SplitName, Path], *, label_field: int) -> dict[str, list[Listed]]:
    """The lines of all lists by the clip's name."""
    listed: dict[str, list[Listed]] = {}
    for split, path in lists.items():
        for name, label in _read_list(path, label_field):
            listed.setdefault(name, []).append(Listed(name, label, split))
    return listed


def _read_list(path: Path, label_field: int) -> Iterable[tuple[str, str]]:
    """Names and labels of a list, by its header or else the first field and that at ``label_field``."""
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} holds no lines.")
    try:
        rows = list(csv.reader(lines)) if any("," in line for line in lines) else [line.split() for line in lines]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a list: {error}.") from error
    rows = [[field.strip() for field in row] for row in rows]
    head = [field.lower() for field in rows[0]]
    name_field = next((head.index(column) for column in _NAME_COLUMNS if column in head), None)
    header = name_field is not None and "label" in head
    if header:
        label_field = head.index("label")
    for number, row in enumerate(rows[header:], 1 + header):
        if len(row) < (len(head) if header else 2):
            raise ValueError(f"{path}, line {number} should hold a name and a label. Found {','.join(row)!r}.")
        name = _stem(row[name_field if header and name_field is not None else 0])
        if header and {"time_start", "time_end"} <= set(head):  # Kinetics' own lists, whose videos carry the times
            times = [row[head.index(column)] for column in ("time_start", "time_end")]
            try:
                name = "_".join([name, *(f"{int(float(time)):06d}" for time in times)])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{path}, line {number} should hold times in seconds. Found {times}.") from error
        yield name, row[label_field]


def _stem(name: str) -> str:
    """The name without folder and, if it has one of a media file, suffix."""
    last = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in {*VIDEO_SUFFIXES, ".wav", ".jpg"} else last


def _list_problem(lines: Sequence[Listed], lists: Mapping[SplitName, Path], label: str | None) -> str | None:
    """What is wrong with a clip's lines in the lists; also that they say another class than ``label``."""
    if not lists:
        return None
    if not lines:
        return f"it is not listed in {' or '.join(Path(path).name for path in lists.values())}"
    if len(lines) > 1:
        return f"it is listed {len(lines)} times: in {', '.join(line.split for line in lines)}"
    said = lines[0].label
    if label is not None and not said.isdecimal() and said.upper() != label:  # numbers are of an unknown order
        return f"its list says {said}, its name {label}"
    return None
