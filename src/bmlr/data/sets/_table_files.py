"""CSV tables of files: reading and preparation."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bmlr._checks import nearest_name
from bmlr.data._base import SPLITS
from bmlr.data.readers._base import Interval
from bmlr.data.readers._files import check_head
from bmlr.data.readers.suffixes import FILE_KINDS
from bmlr.data.sets._lists import SPLIT_WORDS
from bmlr.data.store._cache import checked_name
from bmlr.data.store._samples import SourceSample
from bmlr.data.store._targets import SEPARATOR, TaskName

_RESERVED = ("id", "label", "target", "split", "group")  # columns that are not modalities
_TIMES = ("start", "end")  # columns of seconds, unless a kind is stated
_DELIMITERS = ",;\t"

#: What may follow a colon in the head of a column, and the kind it means.
KINDS = {
    "audio": "audio",
    "spectrogram": "audio",
    "image": "image",
    "video": "video",
    "frames": "frames",
    "flow": "flow",
    "text": "text",
    "array": "array",
    "vector": "vector",
    "sequence": "sequence",
    "text features": "sequence",
    "extra": "extra",
}
_UNREAD = {"extra", "times"}  # kinds of columns that are no modalities
#: Kinds whose files may be folders of frames.
FRAMES = {"video", "frames", "flow"}


@dataclasses.dataclass(frozen=True)
class FileTable:
    """Columns and rows of a table, before its files are read.

    Attributes:
        path: Path of the table.
        columns: Index of each column, by name without kind.
        kinds: Kind of each modality: audio, image, video, frames, flow, array, vector, sequence or text.
        times: Columns of times: start, end, both or none.
        written: Columns whose cells are texts, not names of text files.
        rows: Number and cells of each row that is not blank. Numbers are a spreadsheet's: the head is row 1.
    """

    path: Path
    columns: Mapping[str, int]
    kinds: Mapping[str, str]
    times: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str]]]
    written: frozenset[str] = frozenset()

    @property
    def task(self) -> TaskName:
        """What the targets are: numbers, several labels where a cell holds ``|``, or classes."""
        if "target" in self.columns:
            return "regression"
        return "multilabel" if any(SEPARATOR in _cell(self, cells, "label") for _, cells in self.rows) else "multiclass"


def read_table(path: Path) -> FileTable:
    """Read the columns and rows of a table, without its files.

    The table is CSV in UTF-8, with or without byte order mark, any line ends, commas, semicolons or tabs. Columns:

    * ``label``: name of the class, or several separated by ``|``, which alone says that the sample has none of the
      labels. Or ``target``: a number.
    * ``id`` (optional): a unique name of the sample.
    * ``split`` (optional): train, val or test.
    * ``group`` (optional): speaker, patient or source video, which no two splits should share.
    * Every other column is a modality, named by its head; cells are paths, an empty one is a modality that the
      sample lacks. Its kind follows from the files' suffixes or from the head: ``voice:audio``,
      ``photo:image``, ``clip:video``, ``sensor:array`` (a vector (d) or a sequence (T, d), as in the first file),
      ``pose:sequence``, ``age:vector``, ``words:text features`` (a sequence). ``audio`` reads the sound of videos too.
      ``video``, ``frames`` and ``flow`` may name folders of images, the last two also arrays of frames of any
      channels and folders of arrays. A column of ``text`` holds the texts themselves, or names of ``.txt`` files.
    * ``start`` and ``end`` (optional): the seconds of audio and video files that belong to the sample; an empty cell is
      the beginning or end of the file.
    * A column ``note:extra`` is kept with the sample and not read.

    Args:
        path: The table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a table; the message names the row or column, and the nearest name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    return parse_table(path.read_bytes(), path)


def parse_table(content: bytes, path: Path) -> FileTable:
    r"""Parse the bytes of a table, see :func:`read_table`.

    Example:
        >>> table = parse_table(b"label;photo;words:text features\ncat;a.png;a.npy\n", Path("pets.csv"))
        >>> dict(table.kinds), table.rows
        ({'photo': 'image', 'words': 'sequence'}, [(2, ['cat', 'a.png', 'a.npy'])])
    """
    records = csv_records(content, path)
    head = records[0] if records else []
    if not any(head):
        raise ValueError(f"{path} should begin with the names of its columns. Its first row is empty.")
    rows = [(number, cells) for number, cells in enumerate(records[1:], 2) if any(cells)]
    if not rows:
        raise ValueError(f"{path} should have a row per sample. It has only the names of its columns.")
    columns, stated = _columns(head, path)
    kinds: dict[str, str] = {}
    written = set()
    for name, index in columns.items():
        if name not in _RESERVED and stated[name] not in _UNREAD:
            cells = [(number, row[index]) for number, row in rows if len(row) == len(head) and row[index]]
            if not cells:
                raise ValueError(
                    f"{path}, column '{name}' should hold paths of files or texts. All its cells are empty."
                )
            kinds[name] = stated[name] or _kind_of_files(name, cells, path)
            if kinds[name] == "text" and any(_suffix(cell) != ".txt" for _, cell in cells):
                written.add(name)
    if len(kinds) < 2:
        single = next(iter(kinds.items()), None)
        advice = (
            f" To use the sound of the videos of '{single[0]}' too, name them in a second column headed 'sound:audio'."
            if single and single[1] == "video"
            else ""
        )
        raise ValueError(
            f"{path} should have columns of files for at least 2 modalities. Found {', '.join(kinds) or 'none'}."
            f"{advice}"
        )
    times = [name for name in _TIMES if stated.get(name) == "times"]
    return FileTable(path, columns, kinds, times, rows, frozenset(written))


def list_samples(table: FileTable, *, allow_outside: bool = False) -> list[SourceSample]:
    """Samples of a table.

    Args:
        table: The table.
        allow_outside: Read files outside the table's folder too.

    Returns:
        The samples in the order of the rows. With a problem, which names row and column, are those without a label,
        with the id of an earlier row, with too few or many cells, with a split that is none, without a file, and with
        a file that does not exist or, unless ``allow_outside`` is set, lies outside the table's folder, by its path
        or by a symbolic link. A sample without an id is named ``row-<number>``.
    """
    folder = table.path.parent.resolve()
    first_rows: dict[str, int] = {}
    taken: set[str] = set()
    split_wanted = "split" in table.columns and any(_cell(table, cells, "split") for _, cells in table.rows)
    samples = []
    for number, cells in table.rows:
        sample, problems = _read_row(table, number, cells, None if allow_outside else folder, split_wanted=split_wanted)
        if sample.id in first_rows:
            problems.append(f"column 'id' repeats '{sample.id}' of row {first_rows[sample.id]}")
        first_rows.setdefault(sample.id, number)
        name = sample.id
        while name in taken:
            name = f"{name} (row {number})"
        taken.add(name)
        problem = f"row {number}: {'; '.join(problems)}" if problems else None
        samples.append(dataclasses.replace(sample, id=name, problem=problem))
    return samples


def csv_records(content: bytes, path: Path) -> list[list[str]]:
    """All rows of a table, blank ones included, their cells stripped."""
    if content:
        check_head(path, content, text=True)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} should be text in UTF-8: {error.reason} at byte {error.start}. In a spreadsheet, save it as "
            "'CSV UTF-8'."
        ) from error
    records: list[list[str]] = []
    try:
        # Strict: else an unclosed quote silently swallows all rows after it.
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=find_delimiter(text), strict=True):
            records.append([cell.strip() for cell in record])  # noqa: PERF401  (the number of rows read is told)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: row {len(records) + 1}: {error}.") from error
    return records


def find_delimiter(text: str) -> str:
    """Most frequent delimiter of the head, outside quotes."""
    line = next(iter(text.splitlines()), "")
    bare = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=bare.count)


def _columns(head: Sequence[str], path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Index and stated kind of each column, by name."""
    columns: dict[str, int] = {}
    stated: dict[str, str] = {}
    for index, text in enumerate(head):
        name, colon, kind = (word.strip() for word in text.partition(":"))
        where = f"{path}, column {index + 1}"
        if not name:
            raise ValueError(f"{where} should have a name in the first row. Found {text!r}.")
        if name.casefold() in _RESERVED or (name.casefold() in _TIMES and not colon):
            name = name.casefold()
        if name in columns:
            raise ValueError(f"{where} should have a name of its own. '{name}' is that of column {columns[name] + 1}.")
        if colon:
            words = " ".join(kind.casefold().split())
            if words not in KINDS or name in _RESERVED:
                allowed = f"have a kind among {', '.join(KINDS)}" if name not in _RESERVED else "have no kind"
                raise ValueError(f"{where} should {allowed}. Found {text!r}.{nearest_name(words, KINDS)}")
            stated[name] = KINDS[words]
        columns[name] = index
        stated.setdefault(name, "times" if name in _TIMES else "")
        if name not in _RESERVED and stated[name] not in _UNREAD:
            _check_modality(name, where)
    if "label" not in columns and "target" not in columns:
        raise ValueError(
            f"{path} should have a column 'label', or 'target' for numbers. Found {', '.join(columns)}."
            f"{_nearest_to_label(columns)}"
        )
    if "label" in columns and "target" in columns:
        raise ValueError(
            f"{path} should have a column 'label' for classes or 'target' for numbers. It has both: head one of them "
            "'NAME:extra' to leave it unread."
        )
    return columns, stated


def _nearest_to_label(columns: Mapping[str, int]) -> str:
    names = [name for name in columns if name not in _RESERVED]
    near = nearest_name("label", names) or nearest_name("target", names)
    return near.replace("Did you mean", "Is it")


def _check_modality(name: str, where: str) -> None:
    try:
        checked_name("modality", name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if name in {"fused", "targets"} or name.endswith("_offsets") or hasattr(torch.nn.ModuleDict(), name):
        raise ValueError(f"{where} should not be named '{name}': the name is reserved. Choose another.")


def _kind_of_files(name: str, cells: Sequence[tuple[int, str]], path: Path) -> str:
    """Kind of a column by the suffixes of its files."""
    first: dict[str, int] = {}
    for number, cell in cells:
        kind = FILE_KINDS.get(_suffix(cell))
        if kind is not None:
            first.setdefault(kind, number)
    if len(first) == 1:
        return next(iter(first))
    if first:
        kinds = ", ".join(f"{kind} in row {number}" for kind, number in first.items())
        raise ValueError(f"{path}, column '{name}' holds files of several kinds ({kinds}). Say which: '{name}:KIND'.")
    number, cell = cells[0]
    raise ValueError(
        f"{path}, column '{name}' is unknown: {cell[:80]!r} in row {number} has no suffix of a file that can be read. "
        f"Columns are {', '.join(_RESERVED)}, and files; name it '{name}:text' if it holds texts, '{name}:KIND' to say "
        f"the kind of files, or '{name}:extra' to leave it unread.{nearest_name(name, _RESERVED)}"
    )


def _suffix(cell: str) -> str:
    last = cell.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def _cell(table: FileTable, cells: Sequence[str], name: str) -> str:
    index = table.columns.get(name)
    return cells[index] if index is not None and index < len(cells) else ""


def _read_row(
    table: FileTable, number: int, cells: Sequence[str], folder: Path | None, *, split_wanted: bool
) -> tuple[SourceSample, list[str]]:
    """Sample of a row, and its problems.

    With ``folder``, files have to lie in it.
    """
    name = _cell(table, cells, "id") or f"row-{number}"
    if len(cells) != len(table.columns):
        return SourceSample(name, ""), [f"it has {len(cells)} cells, the first row has {len(table.columns)}"]
    problems = []
    label = _cell(table, cells, "target" if "target" in table.columns else "label")
    word = _cell(table, cells, "split")
    split = SPLIT_WORDS.get(word.casefold())
    if word and split is None:
        problems.append(f"column 'split' holds {word!r}, which is none of {', '.join(SPLITS)}")
    elif split_wanted and not word:
        problems.append("column 'split' is empty, that of other rows is not")
    files: dict[str, Path] = {}
    texts: dict[str, str] = {}
    for modality in table.kinds:
        if not (cell := _cell(table, cells, modality)):
            continue
        if modality in table.written:
            texts[modality] = cell
        else:
            path = find_file(cell, table.path.parent, folder, frames=table.kinds[modality] in FRAMES)
            if isinstance(path, Path):
                files[modality] = path
            else:
                problems.append(f"column '{modality}': {path}")
    if not files and not texts and not problems:
        problems.append("it has no file of any modality")
    unread = [column for column in table.columns if column not in _RESERVED and column not in table.kinds]
    extra: dict[str, Any] = {"row": number, **{column: _cell(table, cells, column) for column in unread}}
    interval, problem = _read_times(table, cells)
    if problem is not None:
        problems.append(problem)
    group = _cell(table, cells, "group") or None
    return SourceSample(name, label, split, group, files, extra, interval=interval, texts=texts), problems


def find_file(cell: str, base: Path, folder: Path | None = None, *, frames: bool = True) -> Path | str:
    """File named by a cell, or the reason it is none."""
    text = cell.replace("\\", "/")
    # macOS writes decomposed letters, others composed ones; a table made elsewhere would find no file.
    spellings = dict.fromkeys([text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)])
    try:
        file = next((path for spelling in spellings if (path := base / spelling).exists()), base / text)
        if folder is not None and not file.resolve().is_relative_to(folder):
            return f"{cell!r} leads out of the folder of the table; option --allow-outside allows it"
        if file.is_dir():
            return file if frames else f"{cell!r} is a folder; only a column of kind 'frames' or 'flow' takes folders"
        if not file.exists():
            return f"there is no file {cell!r}"
    except (OSError, ValueError, RuntimeError) as error:  # a name too long or with a zero byte, a circle of links
        return f"{cell!r} is no path of a file ({error})"
    return file


def _read_times(table: FileTable, cells: Sequence[str]) -> tuple[Interval, str | None]:
    """Interval of a row, and its problem."""
    times: dict[str, float] = {}
    for name in table.times:
        if cell := _cell(table, cells, name):
            try:
                times[name] = float(cell.replace(",", "."))
            except ValueError:
                times[name] = -1.0
            if not 0 <= times[name] < math.inf:
                return Interval(), f"column '{name}' should hold seconds, such as 12.5. It holds {cell!r}"
    interval = Interval(times.get("start", 0.0), times.get("end"))
    if interval.stop is not None and interval.stop <= interval.start:
        return Interval(), f"its end ({interval.stop:g} s) should be after its start ({interval.start:g} s)"
    return interval, None
