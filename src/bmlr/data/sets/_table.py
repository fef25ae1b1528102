"""Data of one's own, prepared from a table of files."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, nearest_name
from bmlr.batch import Batch
from bmlr.data._base import Modality, MultimodalData, Split, SplitName
from bmlr.data._group_split import split_by_group
from bmlr.data.readers._registry import reader_of
from bmlr.data.sets._audiovisual import choose_frames, sample_seed
from bmlr.data.sets._table_files import LAYOUT, ROWS
from bmlr.data.store._store import Store, find_store, open_store
from bmlr.data.transforms._frames import augment_frames

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class TableSplit(Split):
    """Some samples of a store made from a table.

    Args:
        store: The prepared data.
        rows: Positions of the samples in the store.
        forms: How the stored values of each modality become inputs.
        augment: Whether images and frames have random transforms in training.

    Attributes:
        ids: Name of each sample.
        present: Which samples have which modality, for those that some lack.
    """

    def __init__(self, store: Store, rows: np.ndarray, forms: Mapping[str, Form], *, augment: bool) -> None:
        self.store, self.rows, self.forms, self.augment = store, np.asarray(rows, dtype=np.int64), forms, augment
        self.targets = torch.from_numpy(store.targets[self.rows])
        self.groups = [store.samples[row].group for row in self.rows]
        self.ids = [store.samples[row].id for row in self.rows]
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


class TableData(MultimodalData):
    """A data set of one's own, made from a CSV table by ``bmlr prepare table TABLE.csv DEST``.

    The table has a row per sample, with its label and a file per modality; what it may hold is told by
    ``read_table`` of ``_table_files``. Once prepared, table and files are not needed any more. Sounds are log
    spectrograms, images and frames are normalised with ImageNet's mean and deviation. Samples may lack a modality.

    The splits are those of the table's column ``split``. Where there is no such column, they are drawn: no group is in
    two of them, and classes are in like proportion. Where it has no val, ``val_fraction`` of train is, by group.

    * ``protocol="clean"``: a table whose split shares a group between splits is refused.
    * ``protocol="paper"``: the table's split is taken as it is, as when it is a published one.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` or ``paper``.
        resplit: Draw the splits by group, whatever the table's split; under ``clean`` only.
        frames: Frames per video.
        augment: Crop and mirror images and frames at random in training, and choose frames at random.
        standardise: Shift and scale each feature of arrays to mean 0 and standard deviation 1 of the training split.
        split_seed: Seed of what is drawn of the split.
        val_fraction: Share of the validation split, where it is drawn.
        test_fraction: Share of the test split, where it is drawn.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("table", root="prepared", val_fraction=0.2)  # reads no file yet
        >>> data.protocol, data.modalities
        ('clean', {})
    """

    name: ClassVar[str] = LAYOUT

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
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self.root = str(root)
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        if resplit and protocol == "paper":
            raise ValueError("Parameter `resplit` should be false where `protocol = 'paper'`. Found `resplit = True`.")
        self.resplit, self.augment, self.standardise = resplit, augment, standardise
        self.frames = check_integer("frames", frames, 1)
        self.split_seed = check_integer("split_seed", split_seed, 0)
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):  # NaN fails this too
            raise ValueError(
                "Parameters `val_fraction` and `test_fraction` should be above 0 and together below 1. "
                f"Found `val_fraction = {val_fraction}`, `test_fraction = {test_fraction}`."
            )
        self.val_fraction, self.test_fraction = float(val_fraction), float(test_fraction)
        self.classes = ()
        self.modalities = {}
        self._store: Store | None = None
        self._rows: dict[SplitName, np.ndarray] = {}
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
        if store.key["key"].get("layout") != LAYOUT:
            raise ValueError(f"Parameter `root` should hold data prepared from a table. {store.folder} does not.")
        rows = self._split(store)
        empty = [name for name in _SPLITS if not len(rows[name])]
        if empty:
            raise ValueError(f"{store.folder} holds too few samples: split '{empty[0]}' would be empty.")
        for name in store.modalities:
            if not store.present(name)[rows["train"]].any():
                raise ValueError(
                    f"The training split should have '{name}'. Every sample of it in {store.folder} lacks it."
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

    def split(self, name: SplitName) -> TableSplit:
        """One split; groups are those of the table, else every sample is one."""
        check_choice("name", name, _SPLITS)
        store = self.store
        return TableSplit(store, self._rows[name], self._forms, augment=self.augment)

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, read as the table's files were; the middle frames, no random transform.

        Args:
            files: A file per modality, by the names of the table's columns. A modality that samples of the table lack
                may be left out and is given as zeros.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality, or ``files`` does not name what is needed.
        """
        store = self.store
        forms = {name: self._forms[name] for name in modalities or self._forms}
        unknown = [name for name in files if name not in forms]
        if unknown:
            raise ValueError(
                f"`files` should name files of {', '.join(forms)}. Found '{unknown[0]}'."
                f"{nearest_name(unknown[0], forms)}"
            )
        needed = [name for name in forms if name not in files and store.present(name).all()]
        if needed or not files:
            raise ValueError(
                f"`files` should name a file of {', '.join(needed or forms)}: no sample of the table lacks it. "
                f"Found {list(files)}."
            )
        return {
            name: form.inputs([_read_as(store, name, files.get(name))], [0], train=False)
            for name, form in forms.items()
        }

    def _split(self, store: Store) -> dict[SplitName, np.ndarray]:
        splits = np.array([clip.split or "" for clip in store.samples])
        if self.resplit or not (splits != "").any():
            if self.protocol == "paper":
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': the table of {store.folder} has no column 'split'."
                )
            return self._drawn(store, np.arange(len(store)), self.test_fraction)
        rows: dict[SplitName, np.ndarray] = {name: np.flatnonzero(splits == name) for name in _SPLITS}
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"The column 'split' of the table of {store.folder} names no sample '{name}'. Add some, or set "
                    "`resplit = True` to have all splits drawn by group."
                )
        if not len(rows["val"]):
            drawn = self._drawn(store, rows["train"], 0.0)
            rows["train"], rows["val"] = drawn["train"], drawn["val"]
        if self.protocol == "clean":
            _check_groups(store, rows)
        return rows

    def _drawn(self, store: Store, rows: np.ndarray, test_fraction: float) -> dict[SplitName, np.ndarray]:
        groups = [store.samples[row].group for row in rows]
        drawn = split_by_group(
            groups,
            store.targets[rows],
            val_fraction=self.val_fraction,
            test_fraction=test_fraction,
            seed=self.split_seed,
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


def _check_groups(store: Store, rows: Mapping[SplitName, np.ndarray]) -> None:
    splits_of: dict[str, set[str]] = collections.defaultdict(set)
    for split, chosen in rows.items():
        for row in chosen:
            splits_of[store.samples[row].group].add(split)
    shared = [group for group, splits in splits_of.items() if len(splits) > 1]
    if shared:
        names = ", ".join(repr(group) for group in shared[:3]) + (", …" if len(shared) > 3 else "")
        raise ValueError(
            f"The table's split puts {len(shared)} of {len(splits_of)} groups in several splits ({names}), so that "
            "protocol 'clean' cannot take it. Set `resplit = True` to have the splits drawn by group, or "
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
        for start in range(0, len(values), ROWS):
            block = np.asarray(values[start : start + ROWS][used[start : start + ROWS]], dtype=np.float64)
            yield block[block.any(1)] if padded else block

    count = sum(len(block) for block in blocks())
    if not count:
        warnings.warn(f"'{name}' is zero at every time step of the training split.", stacklevel=4)
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
