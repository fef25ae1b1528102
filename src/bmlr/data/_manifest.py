"""A data set of one's own from a CSV table: a row per sample, a column of files per modality, no code."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, nearest_name
from bmlr.batch import Batch
from bmlr.data._audiovisual import choose_frames, sample_seed
from bmlr.data._augment import augment_frames
from bmlr.data._base import Modality, MultimodalData, Part, PartName
from bmlr.data._cache import checked_name
from bmlr.data._layouts import audio_reader
from bmlr.data._media import FILMS, RECORDINGS, ArrayReader, ImageReader, VideoReader, check_installed, reader_of
from bmlr.data._prepare import (
    Item,
    Prepared,
    PrepareOptions,
    Reader,
    Store,
    find_store,
    open_store,
    prepare_items,
)
from bmlr.data._split import split_by_group

_LAYOUT = "manifest"
_PARTS: tuple[PartName, ...] = get_args(PartName)
_ABOUT = ("id", "label", "split", "group")  # columns that are no modality
_DELIMITERS = ",;\t"
_SECONDS = 10.0  # of the spectrograms, where nothing is said
_ROWS = 1 << 16  # values' rows that statistics take at a time
_PART_WORDS: dict[str, PartName] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
#: What may follow a colon in the head of a column, and the kind it means.
KINDS = {
    "audio": "audio",
    "spectrogram": "audio",
    "image": "image",
    "video": "video",
    "frames": "video",
    "array": "array",
    "vector": "vector",
    "sequence": "sequence",
    "text features": "sequence",
    "extra": "extra",
}
_SUFFIXES = {
    "audio": (*RECORDINGS, ".mp3", ".m4a", ".aac", ".opus"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    "video": FILMS,
    "array": (".npy",),
}
_KIND_OF = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that has been read, before any of its files.

    Attributes:
        path: Where it is.
        columns: Place of each column, by name without kind.
        kinds: Kind of each modality: audio, image, video, array, vector or sequence.
        rows: Number and cells of each row that is not blank. Numbers are those a spreadsheet shows, the head being
            row 1.
    """

    path: Path
    columns: Mapping[str, int]
    kinds: Mapping[str, str]
    rows: Sequence[tuple[int, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class ManifestOptions(PrepareOptions):
    """Options of the preparation of a table.

    Attributes:
        outside: Read files outside the table's folder too.
    """

    outside: bool = False


def prepare_manifest(source: Path, dest: Path, options: PrepareOptions) -> Prepared:
    """Read all files of a table once and store them, see :func:`read_table` and :func:`table_items`.

    Sounds become the log spectrograms of the audio-visual data sets, 257 bins over ``options.seconds`` (10 by
    default); pictures and frames are resized to squares of ``options.size`` pixels; arrays are kept as float32.

    Args:
        source: The table.
        dest: Folder in which the folder ``manifest-<hash>`` is made.
        options: Options.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If the table cannot be read, or too many of its rows are rejected.
    """
    if options.lists:
        raise ValueError("Published lists are not for tables: write the part of each row in the column 'split'.")
    options.refuse(_LAYOUT, "file")
    table = read_table(source)
    if set(table.kinds.values()) & {"audio", "image", "video"}:
        check_installed()
    items = table_items(table, outside=isinstance(options, ManifestOptions) and options.outside)
    classes = _classes(items)
    if len(classes) < 2:
        example = next((f", such as {item.problem}" for item in items if item.problem), "")
        raise ValueError(f"{table.path} should have rows of at least 2 classes. Usable are {classes}{example}.")
    return prepare_items(
        _LAYOUT,
        items,
        {name: _reader(name, kind, items, options) for name, kind in table.kinds.items()},
        classes,
        dest,
        key={"layout": _LAYOUT, "kinds": dict(table.kinds)},
        workers=options.workers,
        max_rejected=options.max_rejected,
        progress=options.progress,
    )


def read_table(path: Path) -> Table:
    """Read a table: what its columns are and its rows, but none of its files.

    The table is CSV in UTF-8, with or without byte order mark, any line ends, commas, semicolons or tabs. Columns:

    * ``label``: name of the class.
    * ``id`` (optional): a unique name of the sample.
    * ``split`` (optional): train, val or test.
    * ``group`` (optional): what no two parts should share: the speaker, the patient, the film a clip is cut from.
    * Every other column is a modality, named by its head; cells are paths, an empty one is a modality that the
      sample lacks. What it is, is told by the files' suffixes or by a kind in the head: ``voice:audio``,
      ``photo:image``, ``clip:video``, ``sensor:array`` (a vector (d) or a sequence (T, d), as in the first file),
      ``pose:sequence``, ``age:vector``, ``words:text features`` (a sequence). ``audio`` reads the sound of films too.
    * A column ``note:extra`` is kept with the sample and not read.

    Args:
        path: The table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table; the message names the row or column, and the nearest name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    return parse_table(path.read_bytes(), path)


def parse_table(content: bytes, path: Path) -> Table:
    r"""The table in the bytes of a file, see :func:`read_table`.

    Example:
        >>> table = parse_table(b"label;photo;words:text features\ncat;a.png;a.npy\n", Path("pets.csv"))
        >>> dict(table.kinds), table.rows
        ({'photo': 'image', 'words': 'sequence'}, [(2, ['cat', 'a.png', 'a.npy'])])
    """
    records = _records(content, path)
    head = records[0] if records else []
    if not any(head):
        raise ValueError(f"{path} should begin with the names of its columns. Its first row is empty.")
    rows = [(number, cells) for number, cells in enumerate(records[1:], 2) if any(cells)]
    if not rows:
        raise ValueError(f"{path} should have a row per sample. It has none but the names of its columns.")
    columns, given = _columns(head, path)
    kinds: dict[str, str] = {}
    for name, place in columns.items():
        if name not in _ABOUT and given[name] != "extra":
            cells = [(number, row[place]) for number, row in rows if len(row) == len(head) and row[place]]
            if not cells:
                raise ValueError(f"{path}, column '{name}' should hold paths of files. All its cells are empty.")
            kinds[name] = given[name] or _kind_of_files(name, cells, path)
    if len(kinds) < 2:
        raise ValueError(f"{path} should have columns of files for at least 2 modalities. Found {list(kinds)}.")
    return Table(path, columns, kinds, rows)


def table_items(table: Table, *, outside: bool = False) -> list[Item]:
    """The samples of a table.

    Args:
        table: The table.
        outside: Read files outside the table's folder too.

    Returns:
        The samples in the order of the rows. With a problem, which names row and column, are those without a label,
        with the id of an earlier row, with too few or many cells, with a split that is none, without a file, and with
        a file that does not exist or, unless ``outside`` is set, lies outside the table's folder, be it by its path
        or by a symbolic link. A sample without an id is named ``row-<number>``.
    """
    folder = table.path.parent.resolve()
    first_rows: dict[str, int] = {}
    taken: set[str] = set()
    split_wanted = "split" in table.columns and any(_cell(table, cells, "split") for _, cells in table.rows)
    items = []
    for number, cells in table.rows:
        item, problems = _item(table, number, cells, None if outside else folder, split_wanted=split_wanted)
        if item.id in first_rows:
            problems.append(f"column 'id' repeats '{item.id}' of row {first_rows[item.id]}")
        first_rows.setdefault(item.id, number)
        name = item.id
        while name in taken:
            name = f"{name} (row {number})"
        taken.add(name)
        problem = f"row {number}: {'; '.join(problems)}" if problems else None
        items.append(dataclasses.replace(item, id=name, problem=problem))
    return items


class ManifestPart(Part):
    """Some samples of a store made from a table.

    Args:
        store: The prepared data.
        rows: Positions of the samples in the store.
        forms: How the stored values of each modality become inputs.
        augment: Whether pictures and frames have random transforms in training.

    Attributes:
        ids: Name of each sample.
        present: Which samples have which modality, for those that some lack.
    """

    def __init__(self, store: Store, rows: np.ndarray, forms: Mapping[str, Form], *, augment: bool) -> None:
        self.store, self.rows, self.forms, self.augment = store, np.asarray(rows, dtype=np.int64), forms, augment
        self.targets = torch.from_numpy(store.targets[self.rows])
        self.groups = [store.clips[row].group for row in self.rows]
        self.ids = [store.clips[row].id for row in self.rows]
        masks = {name: store.present(name)[self.rows] for name in forms}
        self.present = {name: mask for name, mask in masks.items() if not mask.all()} or None

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``; with ``augment`` other frames are chosen, cropped and mirrored every time."""
        positions = np.asarray(indices, dtype=np.int64)
        seeds = [sample_seed(seed, int(position)) for position in positions]
        inputs = {
            name: form.inputs(
                [self.store.values(name, row) for row in self.rows[positions]],
                seeds,
                train=augment and self.augment,
            )
            for name, form in self.forms.items()
        }
        present = {name: torch.from_numpy(mask[positions]) for name, mask in (self.present or {}).items()}
        return Batch(inputs, self.targets[positions], present or None, torch.from_numpy(positions))


@dataclasses.dataclass(frozen=True)
class Form:
    """How the stored values of one modality become inputs of a model.

    Attributes:
        modality: Form of the inputs.
        statistics: Mean and standard deviation of each feature, shape (2, d); None leaves them as they are.
    """

    modality: Modality
    statistics: np.ndarray | None = None

    def inputs(self, samples: Sequence[np.ndarray], seeds: Sequence[int], *, train: bool) -> Tensor:
        """Inputs (B, …), float32, from the stored rows of each sample; zero for a sample that has none.

        Args:
            samples: Rows of each sample: one where the shape is fixed, else T.
            seeds: Seed of each sample's random transforms.
            train: Apply them.
        """
        there = [position for position, rows in enumerate(samples) if len(rows)]
        shape = self.modality.shape
        if self.modality.kind == "sequence":
            shape = (max(shape[0], *map(len, samples)), *shape[1:])
        chosen = torch.tensor([seeds[position] for position in there], dtype=torch.int64)
        found = self._present([samples[position] for position in there], chosen, shape, train=train) if there else None
        if found is not None and len(found) == len(samples):
            return found
        inputs = torch.zeros(len(samples), *shape)
        if found is not None:
            inputs[there] = found
        return inputs

    def _present(self, samples: list[np.ndarray], seeds: Tensor, shape: tuple[int, ...], *, train: bool) -> Tensor:
        kind = self.modality.kind
        if kind == "sequence":
            padded = np.zeros((len(samples), *shape), dtype=np.float32)
            for sequence, rows in zip(padded, samples, strict=True):
                sequence[: len(rows)] = rows
            return torch.from_numpy(self._standardised(padded))
        if kind == "frames":
            frames = [
                rows[choose_frames(len(rows), shape[0], np.random.default_rng(seed) if train else None)]
                for rows, seed in zip(samples, seeds.tolist(), strict=True)
            ]
            return augment_frames(torch.from_numpy(np.stack(frames)), shape[-1], seeds, train=train)
        values = np.concatenate(samples)
        if kind == "image":
            return augment_frames(torch.from_numpy(values[:, None]), shape[-1], seeds, train=train)[:, 0]
        return torch.from_numpy(self._standardised(values.astype(np.float32)))

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        """Values (…, d) shifted and scaled, but for time steps of zeros, which are padding."""
        if self.statistics is None:
            return values
        standardised: np.ndarray = ((values - self.statistics[0]) / self.statistics[1]).astype(np.float32)
        if self.modality.kind == "sequence":
            standardised[~values.any(-1)] = 0
        return standardised


class Manifest(MultimodalData):
    """A data set of one's own, made from a CSV table by ``bmlr prepare manifest TABLE.csv DEST``.

    The table has a row per sample, with its label and a file per modality; what it may hold is told by
    :func:`bmlr.data._manifest.read_table`. Once prepared, table and files are not needed any more. Sounds are log
    spectrograms, pictures and frames are normalised with ImageNet's mean and deviation. Samples may lack a modality.

    The parts are those of the table's column ``split``. Where there is no such column, they are drawn: no group is in
    two of them, and classes are in like proportion. Where it has no val, ``val_share`` of train becomes val, by group.

    * ``protocol="clean"``: a table whose split shares a group between parts is refused.
    * ``protocol="paper"``: the table's split is taken as it is, as when it is a published one.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` or ``paper``.
        resplit: Draw the parts by group, whatever the table's split; under ``clean`` only.
        frames: Frames per film.
        augment: Crop and mirror pictures and frames at random in training, and choose frames at random.
        standardise: Shift and scale each feature of arrays to mean 0 and standard deviation 1 of the training part.
        split_seed: Seed of what is drawn of the split.
        val_share: Share of the validation part, where it is drawn.
        test_share: Share of the test part, where it is drawn.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("manifest", root="prepared", val_share=0.2)  # reads no file yet
        >>> data.protocol, data.modalities
        ('clean', {})
    """

    name: ClassVar[str] = _LAYOUT

    def __init__(
        self,
        root: str | Path,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        resplit: bool = False,
        frames: int = 3,
        augment: bool = True,
        standardise: bool = True,
        split_seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
    ) -> None:
        self.root = str(root)
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        if resplit and protocol == "paper":
            raise ValueError("Parameter `resplit` should be false where `protocol = 'paper'`. Found `resplit = True`.")
        self.resplit, self.augment, self.standardise = resplit, augment, standardise
        self.frames = check_integer("frames", frames, 1)
        self.split_seed = check_integer("split_seed", split_seed, 0)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):  # NaN fails this too
            raise ValueError(
                "Parameters `val_share` and `test_share` should be above 0 and together below 1. "
                f"Found `val_share = {val_share}`, `test_share = {test_share}`."
            )
        self.val_share, self.test_share = float(val_share), float(test_share)
        self.classes = ()
        self.modalities = {}
        self._store: Store | None = None
        self._rows: dict[PartName, np.ndarray] = {}
        self._forms: dict[str, Form] = {}

    def prepare(self) -> None:
        """Open the prepared folder and split it; ``classes`` and ``modalities`` are known from then on.

        Raises:
            FileNotFoundError: If there is no prepared data; the message says how to make it.
            ValueError: If it is damaged or not made from a table, or its split cannot be used.
        """
        if self._store is not None:
            return
        store = open_store(find_store(Path(self.root), self.name))
        if store.key["key"].get("layout") != _LAYOUT:
            raise ValueError(f"Parameter `root` should hold data prepared from a table. {store.folder} does not.")
        rows = self._split(store)
        empty = [name for name in _PARTS if not len(rows[name])]
        if empty:
            raise ValueError(f"{store.folder} holds too few samples: part '{empty[0]}' would be empty.")
        for name in store.modalities:
            if not store.present(name)[rows["train"]].any():
                raise ValueError(
                    f"The training part should have '{name}'. Every sample of it in {store.folder} lacks it."
                )
        self._forms = {name: self._form(store, name, rows["train"]) for name in store.modalities}
        self.modalities = {name: form.modality for name, form in self._forms.items()}
        self.classes = store.classes
        self._store, self._rows = store, rows

    @property
    def store(self) -> Store:
        """The prepared data."""
        self.prepare()
        if self._store is None:
            raise AssertionError("prepare() opens the store or raises.")
        return self._store

    def part(self, name: PartName) -> ManifestPart:
        """One part; groups are those of the table, else every sample is one."""
        check_choice("name", name, _PARTS)
        store = self.store
        return ManifestPart(store, self._rows[name], self._forms, augment=self.augment)

    def load_files(self, files: Mapping[str, Path]) -> dict[str, Tensor]:
        """Inputs of one new sample, read as the table's files were; the middle frames, no random transform.

        Args:
            files: A file per modality, by the names of the table's columns. A modality that samples of the table lack
                may be left out and is given as zeros.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality, or ``files`` does not name what is needed.
        """
        store = self.store
        unknown = [name for name in files if name not in self._forms]
        if unknown:
            raise ValueError(
                f"`files` should name files of {', '.join(self._forms)}. Found '{unknown[0]}'."
                f"{nearest_name(unknown[0], self._forms)}"
            )
        needed = [name for name in self._forms if name not in files and store.present(name).all()]
        if needed or not files:
            raise ValueError(
                f"`files` should name a file of {', '.join(needed or self._forms)}: no sample of the table lacks it. "
                f"Found {list(files)}."
            )
        return {
            name: form.inputs([_read_as(store, name, files.get(name))], [0], train=False)
            for name, form in self._forms.items()
        }

    def _split(self, store: Store) -> dict[PartName, np.ndarray]:
        splits = np.array([clip.split or "" for clip in store.clips])
        if self.resplit or not (splits != "").any():
            if self.protocol == "paper":
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': the table of {store.folder} has no column 'split'."
                )
            return self._drawn(store, np.arange(len(store)), self.test_share)
        rows: dict[PartName, np.ndarray] = {name: np.flatnonzero(splits == name) for name in _PARTS}
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"The column 'split' of the table of {store.folder} names no sample '{name}'. Add some, or set "
                    "`resplit = True` to have all parts drawn by group."
                )
        if not len(rows["val"]):
            drawn = self._drawn(store, rows["train"], 0.0)
            rows["train"], rows["val"] = drawn["train"], drawn["val"]
        if self.protocol == "clean":
            _check_groups(store, rows)
        return rows

    def _drawn(self, store: Store, rows: np.ndarray, test_share: float) -> dict[PartName, np.ndarray]:
        groups = [store.clips[row].group for row in rows]
        drawn = split_by_group(
            groups, store.targets[rows], val_share=self.val_share, test_share=test_share, seed=self.split_seed
        )
        return {name: rows[chosen] for name, chosen in drawn.items()}

    def _form(self, store: Store, name: str, train: np.ndarray) -> Form:
        stored = store.modalities[name]
        if stored.kind == "image":
            return Form(Modality("image", (3, *stored.shape[:2])))
        if stored.kind == "frames":
            return Form(Modality("frames", (self.frames, 3, *stored.shape[1:3])))
        if stored.kind == "spectrogram":
            return Form(stored)
        statistics = _statistics(store, name, train) if self.standardise else None
        if stored.kind == "vector":
            return Form(stored, statistics)
        longest = int(np.diff(store.offsets[name]).max())
        return Form(Modality("sequence", (longest, stored.shape[1])), statistics)


# The table


def _records(content: bytes, path: Path) -> list[list[str]]:
    """All rows of a table, blank ones too, their cells without the space around them."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} should be text in UTF-8: {error.reason} at byte {error.start}. In a spreadsheet, save it as "
            "'CSV UTF-8'."
        ) from error
    records: list[list[str]] = []
    try:
        # Strict: otherwise a quote that is never closed swallows all rows after it without a word.
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True):
            records.append([cell.strip() for cell in record])  # noqa: PERF401  (the number of rows read is told)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: row {len(records) + 1}: {error}.") from error
    return records


def _delimiter(text: str) -> str:
    """What separates the names of the columns: of comma, semicolon and tab the most frequent outside of quotes."""
    line = next(iter(text.splitlines()), "")
    bare = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=bare.count)


def _columns(head: Sequence[str], path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Place and given kind ("" where none is given) of each column by its name."""
    columns: dict[str, int] = {}
    given: dict[str, str] = {}
    for place, text in enumerate(head):
        name, colon, kind = (word.strip() for word in text.partition(":"))
        where = f"{path}, column {place + 1}"
        if not name:
            raise ValueError(f"{where} should have a name in the first row. Found {text!r}.")
        if name.casefold() in _ABOUT:
            name = name.casefold()
        if name in columns:
            raise ValueError(f"{where} should have a name of its own. '{name}' is that of column {columns[name] + 1}.")
        if colon:
            words = " ".join(kind.casefold().split())
            if words not in KINDS or name in _ABOUT:
                allowed = f"have a kind among {', '.join(KINDS)}" if name not in _ABOUT else "have no kind"
                raise ValueError(f"{where} should {allowed}. Found {text!r}.{nearest_name(words, KINDS)}")
            given[name] = KINDS[words]
        columns[name] = place
        given.setdefault(name, "")
        if name not in _ABOUT and given[name] != "extra":
            _check_modality(name, where)
    if "label" not in columns:
        raise ValueError(
            f"{path} should have a column 'label'. Found {', '.join(columns)}.{_nearest_to_label(columns)}"
        )
    return columns, given


def _nearest_to_label(columns: Mapping[str, int]) -> str:
    near = nearest_name("label", [name for name in columns if name not in _ABOUT])
    return near.replace("Did you mean", "Is it")


def _check_modality(name: str, where: str) -> None:
    try:
        checked_name("modality", name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if name in {"fused", "targets"} or name.endswith("_offsets") or hasattr(torch.nn.ModuleDict(), name):
        raise ValueError(f"{where} should not be named '{name}': that has a meaning of its own. Choose another name.")


def _kind_of_files(name: str, cells: Sequence[tuple[int, str]], path: Path) -> str:
    """The kind of a column by the suffixes of its files."""
    first: dict[str, int] = {}
    for number, cell in cells:
        kind = _KIND_OF.get(_suffix(cell))
        if kind is not None:
            first.setdefault(kind, number)
    if len(first) == 1:
        return next(iter(first))
    if first:
        found = ", ".join(f"{kind} in row {number}" for kind, number in first.items())
        raise ValueError(f"{path}, column '{name}' holds files of several kinds ({found}). Say which: '{name}:KIND'.")
    number, cell = cells[0]
    raise ValueError(
        f"{path}, column '{name}' is unknown: {cell[:80]!r} in row {number} has no suffix of a file that can be read. "
        f"Columns are {', '.join(_ABOUT)}, and files; name it '{name}:KIND' to say their kind, or '{name}:extra' to "
        f"leave it unread.{nearest_name(name, _ABOUT)}"
    )


def _suffix(cell: str) -> str:
    last = cell.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def _cell(table: Table, cells: Sequence[str], name: str) -> str:
    place = table.columns.get(name)
    return cells[place] if place is not None and place < len(cells) else ""


def _item(
    table: Table, number: int, cells: Sequence[str], folder: Path | None, *, split_wanted: bool
) -> tuple[Item, list[str]]:
    """A sample, and what is wrong with its row. Files have to lie in ``folder`` where it is given."""
    name = _cell(table, cells, "id") or f"row-{number}"
    if len(cells) != len(table.columns):
        return Item(name, ""), [f"it has {len(cells)} cells, the first row has {len(table.columns)}"]
    problems = []
    label, word = _cell(table, cells, "label"), _cell(table, cells, "split")
    if not label:
        problems.append("column 'label' is empty")
    split = _PART_WORDS.get(word.casefold())
    if word and split is None:
        problems.append(f"column 'split' holds {word!r}, which is none of {', '.join(_PARTS)}")
    elif split_wanted and not word:
        problems.append("column 'split' is empty, that of other rows is not")
    files: dict[str, Path] = {}
    for modality in table.kinds:
        if cell := _cell(table, cells, modality):
            found = _file(cell, table.path.parent, folder)
            if isinstance(found, Path):
                files[modality] = found
            else:
                problems.append(f"column '{modality}': {found}")
    if not files and not problems:
        problems.append("it has no file of any modality")
    others = [column for column in table.columns if column not in _ABOUT and column not in table.kinds]
    extra: dict[str, Any] = {"row": number, **{column: _cell(table, cells, column) for column in others}}
    return Item(name, label, split, _cell(table, cells, "group") or None, files, extra), problems


def _file(cell: str, base: Path, folder: Path | None) -> Path | str:
    """The file a cell names, or what is wrong with it."""
    text = cell.replace("\\", "/")
    # Composed and decomposed letters look alike, and systems differ in which they write.
    spellings = dict.fromkeys([text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)])
    try:
        found = next((path for spelling in spellings if (path := base / spelling).exists()), base / text)
        if folder is not None and not found.resolve().is_relative_to(folder):
            return f"{cell!r} leads out of the folder of the table; the option `outside` allows it"
        if not found.is_file():
            return f"there is no file {cell!r}"
    except (OSError, ValueError, RuntimeError) as error:  # names too long or with a zero byte, links in a circle
        return f"{cell!r} is no path of a file ({error})"
    return found


def _classes(items: Sequence[Item]) -> list[str]:
    """Labels of the usable samples, in order of number where all are numbers."""
    labels = {item.label for item in items if item.problem is None}
    numbers = all(label.isascii() and label.isdecimal() and len(label) < 10 for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if numbers else sorted(labels)


def _reader(name: str, kind: str, items: Sequence[Item], options: PrepareOptions) -> Reader:
    if kind == "audio":
        return audio_reader(options.seconds or _SECONDS, options.dtype)
    if kind == "image":
        return ImageReader(options.size)
    if kind == "video":
        return VideoReader(options.size, options.fps)
    if kind == "sequence" or (kind == "array" and _dimensions(name, items) == 2):
        return ArrayReader("sequence")
    return ArrayReader("vector")


def _dimensions(name: str, items: Sequence[Item]) -> int:
    """Dimensions of the first array of a column that can be read as a vector or sequence."""
    for item in items:
        if item.problem is None and name in item.files:
            try:
                values = np.load(item.files[name], mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue  # rejected with the reason when it is read
            if isinstance(values, np.ndarray) and values.ndim in {1, 2}:
                return values.ndim
    return 1


# The store


def _check_groups(store: Store, rows: Mapping[PartName, np.ndarray]) -> None:
    parts_of: dict[str, set[str]] = collections.defaultdict(set)
    for part, chosen in rows.items():
        for row in chosen:
            parts_of[store.clips[row].group].add(part)
    shared = [group for group, parts in parts_of.items() if len(parts) > 1]
    if shared:
        names = ", ".join(repr(group) for group in shared[:3]) + (", …" if len(shared) > 3 else "")
        raise ValueError(
            f"The table's split puts {len(shared)} of {len(parts_of)} groups in several parts ({names}), so that "
            "protocol 'clean' cannot take it. Set `resplit = True` to have the parts drawn by group, or "
            "`protocol = 'paper'` to take the split as it is."
        )


def _statistics(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each feature over samples, or their time steps that are not zero, shape (2, d).

    A feature that does not vary is only shifted.
    """
    chosen = np.zeros(len(store), dtype=bool)
    chosen[rows] = True
    used = np.repeat(chosen, np.diff(store.offsets[name]))
    padded = store.modalities[name].kind == "sequence"
    values = store.arrays[name]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(values), _ROWS):
            block = np.asarray(values[start : start + _ROWS][used[start : start + _ROWS]], dtype=np.float64)
            yield block[block.any(1)] if padded else block

    count = sum(len(block) for block in blocks())
    if not count:
        warnings.warn(f"'{name}' is zero at every time step of the training part.", stacklevel=4)
        return np.stack((np.zeros(values.shape[1]), np.ones(values.shape[1])))
    mean = sum(block.sum(0) for block in blocks()) / count
    deviation = np.sqrt(sum(((block - mean) ** 2).sum(0) for block in blocks()) / count)
    return np.stack((mean, np.where(deviation <= 1e-6 * np.abs(mean), 1.0, deviation)))


def _read_as(store: Store, name: str, path: Path | None) -> np.ndarray:
    """Rows of a new file as the store has them; none where there is no file."""
    stored = store.modalities[name]
    fixed = stored.shape[0] != -1
    row = stored.shape if fixed else stored.shape[1:]
    if path is None:
        return np.zeros((0, *row), dtype=np.float32)
    values = reader_of(store.key["readers"][name])(Path(path)).values
    rows: np.ndarray = values[None] if fixed else values
    if rows.shape[1:] != row or not len(rows):
        raise ValueError(f"{path} should have shape {stored.shape} as '{name}', −1 being any. Found {values.shape}.")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError(f"{path} should be finite. Found NaN or infinity.")
    return rows
