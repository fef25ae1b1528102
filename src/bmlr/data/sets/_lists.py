"""Published folders and lists of video clips."""

from __future__ import annotations

import csv
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bmlr.data._base import SplitName
from bmlr.data.readers._files import check_head
from bmlr.data.readers.suffixes import VIDEO_SUFFIXES

_NAME_COLUMNS = ("name", "video", "video_id", "videoid", "id", "file", "filename", "youtube_id")

#: Words for the splits, in lower case.
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ListEntry:
    """A line of a published list.

    Attributes:
        name: Name of the clip, without folder and suffix.
        label: Name or number of its class.
        split: Split of the list.
    """

    name: str
    label: str
    split: SplitName


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, without empty ones.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not text in UTF-8.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """Text of a list in UTF-8, with or without byte order mark; see :func:`read_lines`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list {path}.")
    content = Path(path).read_bytes()
    if content:
        check_head(path, content, text=True)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error


def find_folder(source: Path, name: str) -> Path:
    """Folder ``name`` of ``source``.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(source) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {name} in {source}.")
    return folder


def files_by_stem(folder: Path, suffixes: set[str], *, below: bool = False) -> dict[str, list[Path]]:
    """Files with one of the suffixes, by their stem, in sorted order.

    Stems are composed (NFC), as names in lists are: macOS writes decomposed ones.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*") if below else folder.iterdir()):
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
            files.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    if not files:
        raise FileNotFoundError(f"There are no {', '.join(sorted(suffixes))} files in {folder}.")
    return files


def read_lists(lists: Mapping[SplitName, Path], *, label_field: int) -> dict[str, list[ListEntry]]:
    """Entries of all lists, by the clip's name.

    Args:
        lists: List of each split.
        label_field: Index of the label in a line without a header.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a list cannot be read.
    """
    entries: dict[str, list[ListEntry]] = {}
    for split, path in lists.items():
        for name, label in read_list(path, label_field):
            entries.setdefault(name, []).append(ListEntry(name, label, split))
    return entries


def read_list(path: Path, label_field: int) -> Iterable[tuple[str, str]]:
    """Names and labels of a list.

    Without a header they are the first field and the one at ``label_field``.
    """
    lines = read_lines(path)
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
        if header and {"time_start", "time_end"} <= set(
            head
        ):  # Kinetics' own lists; its files carry the times in their names
            times = [row[head.index(column)] for column in ("time_start", "time_end")]
            try:
                name = "_".join([name, *(f"{int(float(time)):06d}" for time in times)])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{path}, line {number} should hold times in seconds. Found {times}.") from error
        yield name, row[label_field]


def _stem(name: str) -> str:
    """A file's name without folder and media suffix.

    Other suffixes may be part of the name.
    """
    last = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    stem, dot, suffix = last.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in {*VIDEO_SUFFIXES, ".wav", ".jpg"} else last


def find_list_problem(entries: Sequence[ListEntry], lists: Mapping[SplitName, Path], label: str | None) -> str | None:
    """Reason to reject a clip for its list entries, or None.

    One of them is another class than ``label``.
    """
    if not lists:
        return None
    if not entries:
        return f"it is not listed in {' or '.join(Path(path).name for path in lists.values())}"
    if len(entries) > 1:
        return f"it is listed {len(entries)} times: in {', '.join(entry.split for entry in entries)}"
    listed_label = entries[0].label
    if label is not None and not listed_label.isdecimal() and listed_label.upper() != label:
        # A number cannot be compared: the order of its classes is not published.
        return f"its list says {listed_label}, its name {label}"
    return None
