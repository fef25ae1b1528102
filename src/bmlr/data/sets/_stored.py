"""Data sets held in a store: splits, inputs and standardisation, written once for all of them."""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, nearest_name
from bmlr.batch import Batch
from bmlr.data._base import SPLITS, Modality, MultimodalData, Split, SplitName
from bmlr.data._group_split import split_by_group
from bmlr.data.readers._registry import reader_of
from bmlr.data.store._store import Store, find_store, open_store
from bmlr.data.transforms._frames import augment_frames

_ROWS_AT_ONCE = 1 << 16  # bounds the memory of statistics


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
        """Inputs (B, …), float32, from the stored rows of each sample; zero for a sample without rows.

        Args:
            samples: Rows of each sample: one where the shape is fixed, else T.
            seeds: Seed of each sample's random transforms.
            train: Apply random transforms.
        """
        present = [position for position, rows in enumerate(samples) if len(rows)]
        shape = self.modality.shape
        if self.modality.kind == "sequence":
            shape = (max(shape[0], *map(len, samples)), *shape[1:])
        inputs = torch.zeros(len(samples), *shape)
        if present:
            present_seeds = torch.tensor([seeds[position] for position in present], dtype=torch.int64)
            values = self._values([samples[position] for position in present], present_seeds, shape, train=train)
            if len(present) == len(samples):
                return values
            inputs[present] = values
        return inputs

    def _values(self, samples: list[np.ndarray], seeds: Tensor, shape: tuple[int, ...], *, train: bool) -> Tensor:
        kind = self.modality.kind
        if kind == "sequence":
            padded = np.zeros((len(samples), *shape), dtype=np.float32)
            for sequence, rows in zip(padded, samples, strict=True):
                sequence[: len(rows)] = rows
            return torch.from_numpy(padded if self.statistics is None else standardise(padded, self.statistics, True))
        if kind == "frames":
            frames = [
                rows[choose_frames(len(rows), shape[0], np.random.default_rng(seed) if train else None)]
                for rows, seed in zip(samples, seeds.tolist(), strict=True)
            ]
            return augment_frames(torch.from_numpy(np.stack(frames)), shape[-1], seeds, train=train)
        values = np.concatenate(samples)
        if kind == "image":
            return augment_frames(torch.from_numpy(values[:, None]), shape[-1], seeds, train=train)[:, 0]
        values = values.astype(np.float32)
        return torch.from_numpy(values if self.statistics is None else standardise(values, self.statistics))


class StoredSplit(Split):
    """Some samples of a store.

    Args:
        store: The prepared data.
        rows: Positions of the samples in the store.
        forms: How the stored values of each modality become inputs.
        augment: Whether images and frames have random transforms in training.
        masked: Whether batches tell which samples lack a modality.

    Attributes:
        ids: Name of each sample.
    """

    def __init__(
        self, store: Store, rows: np.ndarray, forms: Mapping[str, Form], *, augment: bool = True, masked: bool = True
    ) -> None:
        self.store, self.rows, self.forms, self.augment = store, np.asarray(rows, dtype=np.int64), forms, augment
        self.targets = torch.from_numpy(store.targets[self.rows])
        self.groups = [store.samples[row].group for row in self.rows]
        self.ids = [store.samples[row].id for row in self.rows]
        masks = {name: store.present(name)[self.rows] for name in forms} if masked else {}
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


class StoredData(MultimodalData):
    """A data set held in a store. A subclass says how it is split.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` (no group in two splits) or ``paper`` (the published split).
        frames: Frames per video.
        split_seed: Seed of what is drawn of the split.
        val_fraction: Fraction of the validation split, where it is drawn.
        test_fraction: Fraction of the test split, where it is drawn.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    #: Crop and mirror images and frames at random in training, and choose frames at random.
    augment: bool = True
    #: Shift and scale features to mean 0 and standard deviation 1 of the training split.
    standardise: bool = True

    def __init__(
        self,
        root: str | Path,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        frames: int = 3,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self.root = str(root)
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
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

    def prepare(self) -> None:
        """Open the store and split it; ``classes`` and ``modalities`` are then those of the files.

        Raises:
            FileNotFoundError: If there is no prepared data; the message says how to make it.
            ValueError: If it is damaged, of another data set, or its split cannot be used.
        """
        self.modalities = {name: form.modality for name, form in self._forms.items()}
        self.classes = self.store.classes

    @functools.cached_property
    def store(self) -> Store:
        """The prepared data."""
        store = open_store(find_store(Path(self.root), self.name))
        layout = store.key["key"].get("layout")
        if layout != self.name:
            raise ValueError(f"Parameter `root` should hold a prepared '{self.name}'. {store.folder} holds '{layout}'.")
        return store

    def split(self, name: SplitName) -> StoredSplit:
        """One split, with the groups of its samples."""
        check_choice("name", name, SPLITS)
        self.prepare()
        return StoredSplit(self.store, self._rows[name], self._forms, augment=self.augment)

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, read as the prepared files were; the middle frames, no random transform.

        Args:
            files: A file per modality. A modality that samples of the data set lack may be left out and is given as
                zeros.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality, or ``files`` does not name what is needed.
        """
        forms = {name: self._forms[name] for name in modalities or self._forms}
        files = self._complete(files, forms)
        unknown = [name for name in files if name not in forms]
        if unknown:
            raise ValueError(
                f"`files` should name files of {', '.join(forms)}. Found '{unknown[0]}'."
                f"{nearest_name(unknown[0], forms)}"
            )
        needed = [name for name in forms if name not in files and self.store.present(name).all()]
        if needed or not files:
            raise ValueError(
                f"`files` should name a file of {', '.join(needed or forms)}: no sample of '{self.name}' lacks it. "
                f"Found {list(files)}."
            )
        return {
            name: form.inputs([self._read(name, files.get(name))], [0], train=False) for name, form in forms.items()
        }

    @abstractmethod
    def _split_rows(self) -> dict[SplitName, np.ndarray]:
        """Positions in the store of the samples of each split."""

    def _complete(self, files: Mapping[str, Path], names: Collection[str]) -> Mapping[str, Path]:
        """Files of a new sample with those that another of them implies."""
        return files

    @functools.cached_property
    def _rows(self) -> dict[SplitName, np.ndarray]:
        rows = self._split_rows()
        for name, split_rows in rows.items():
            if not len(split_rows):
                raise ValueError(f"{self.store.folder} holds too few samples: split '{name}' would be empty.")
        return rows

    @functools.cached_property
    def _forms(self) -> dict[str, Form]:
        train = self._rows["train"]
        for name in self.store.modalities:
            if not self.store.present(name)[train].any():
                raise ValueError(
                    f"The training split should have '{name}'. Every sample of it in {self.store.folder} lacks it."
                )
        return {name: self._form(name) for name in self.store.modalities}

    def _form(self, name: str) -> Form:
        stored = self.store.modalities[name]
        if stored.kind == "image":
            return Form(Modality("image", (3, *stored.shape[:2])))
        if stored.kind == "frames":
            return Form(Modality("frames", (self.frames, 3, *stored.shape[1:3])))
        if stored.kind == "spectrogram":
            return Form(stored)
        statistics = feature_statistics(self.store, name, self._rows["train"]) if self.standardise else None
        if stored.kind == "vector":
            return Form(stored, statistics)
        longest = int(np.diff(self.store.offsets[name]).max())
        return Form(Modality("sequence", (longest, stored.shape[1])), statistics)

    def _read(self, name: str, path: Path | None) -> np.ndarray:
        """Rows of a new file as the store has them; an array without rows where there is no file."""
        stored = self.store.modalities[name]
        fixed = stored.shape[0] != -1
        row = stored.shape if fixed else stored.shape[1:]
        if path is None:
            return np.zeros((0, *row), dtype=np.float32)
        values = reader_of(self.store.key["readers"][name])(Path(path)).values
        rows: np.ndarray = values[None] if fixed else values
        if rows.shape[1:] != row or not len(rows):
            raise ValueError(
                f"{path} should have shape {stored.shape} as '{name}', −1 being any. Found {values.shape}."
            )
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise ValueError(f"{path} should be finite. Found NaN or infinity.")
        return rows

    def _published_rows(self) -> dict[SplitName, np.ndarray]:
        """Positions of the samples of each published split; some may be empty."""
        splits = np.array([sample.split or "" for sample in self.store.samples])
        return {name: np.flatnonzero(splits == name) for name in SPLITS}

    def _draw_rows(
        self, rows: np.ndarray, groups: Sequence[str], *, test_fraction: float
    ) -> dict[SplitName, np.ndarray]:
        """``rows`` split by their groups, with classes in like proportion."""
        drawn = split_by_group(
            groups,
            self.store.targets[rows],
            val_fraction=self.val_fraction,
            test_fraction=test_fraction,
            seed=self.split_seed,
        )
        return {name: rows[positions] for name, positions in drawn.items()}


def feature_statistics(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each feature over the samples at ``rows``, shape (2, d).

    Of sequences the time steps that are not zero are counted. A feature that does not vary is only shifted.

    Raises:
        ValueError: If no feature varies: the modality tells nothing, as after a failed extraction of features.
    """
    used_samples = np.zeros(len(store), dtype=bool)
    used_samples[rows] = True
    used = np.repeat(used_samples, np.diff(store.offsets[name]))
    padded = store.modalities[name].kind == "sequence"
    values = store.arrays[name]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(values), _ROWS_AT_ONCE):
            end = start + _ROWS_AT_ONCE
            block = np.asarray(values[start:end][used[start:end]], dtype=np.float64)
            yield block[block.any(1)] if padded else block

    count = sum(len(block) for block in blocks())
    if count:
        mean = sum(block.sum(0) for block in blocks()) / count
        std = np.sqrt(sum(((block - mean) ** 2).sum(0) for block in blocks()) / count)
        constant = std <= 1e-6 * np.abs(mean)
    if not count or constant.all():
        raise ValueError(
            f"The training split's '{name}' should not be the same everywhere: it tells nothing. Mend its files, or "
            "take them as they are with `standardise = False`."
        )
    return np.stack((mean, np.where(constant, 1.0, std)))


def standardise(values: np.ndarray, statistics: np.ndarray, padded: bool = False) -> np.ndarray:
    """Values (…, d) shifted by the first and scaled by the second row of ``statistics``, float32.

    With ``padded``, time steps of zeros stay zero: they are padding.
    """
    standardised: np.ndarray = ((values - statistics[0]) / statistics[1]).astype(np.float32)
    if padded:
        standardised[~values.any(-1)] = 0
    return standardised


def choose_frames(count: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Positions of ``wanted`` of ``count`` frames, one in each equal segment of the video, in order.

    Args:
        count: Frames there are.
        wanted: Frames to choose; if there are fewer, some are chosen more than once.
        rng: Draws a place in each segment; None takes its middle.

    Example:
        >>> choose_frames(10, 3, None).tolist()
        [1, 5, 8]
    """
    places = 0.5 if rng is None else rng.random(wanted)
    positions: np.ndarray = ((np.arange(wanted) + places) * count / wanted).astype(np.int64)
    return positions.clip(max=count - 1)


def sample_seed(seed: int, position: int) -> int:
    """Seed of the random transforms of one sample, below 2^63: a hash of the epoch's seed and its position."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
