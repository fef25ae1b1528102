"""Some modalities of a data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import nearest_name
from bmlr.batch import Batch
from bmlr.data._base import MultimodalData, Preprocessing, Split, SplitName
from bmlr.encoders.pretrained import EncoderInput
from bmlr.tasks import Task


class SelectedModalities(MultimodalData):
    """A data set reduced to some of its modalities.

    Samples that have none of these are left out: they would train and score nothing but the bias. Positions
    (``indices``) count the samples that are left; random transforms are those of the whole data set.

    Args:
        data: The whole data set.
        names: Modalities to keep.

    Raises:
        ValueError: If a name is unknown or there is none.

    Example:
        >>> import bmlr.data
        >>> whole = bmlr.data.create("synthetic", missing={"audio": 0.5}, samples={"test": 100})
        >>> audio = bmlr.data.SelectedModalities(whole, ["audio"])
        >>> audio.split("test").batch([0]).inputs.keys(), len(whole.split("test")), len(audio.split("test"))
        (dict_keys(['audio']), 100, 49)
    """

    def __init__(self, data: MultimodalData, names: Collection[str]) -> None:
        check_modality_names(names, data.modalities)
        self.source = data
        self.protocol, self.classes = data.protocol, data.classes
        self.modalities = {name: modality for name, modality in data.modalities.items() if name in names}
        vars(self).update(name=data.name, defaults=data.defaults)  # class variables of every other data set

    def prepare(self) -> None:
        """Prepare the whole data set."""
        self.source.prepare()

    def split(self, name: SplitName) -> Split:
        """One split, its samples looked through."""
        return _SelectedSplit(self.source.split(name), tuple(self.modalities))

    def with_preprocessing(self, wanted: Mapping[str, EncoderInput]) -> MultimodalData:
        """The kept modalities with inputs as encoders want them."""
        return SelectedModalities(self.source.with_preprocessing(wanted), tuple(self.modalities))

    @property
    def task(self) -> Task:
        """Task of the complete data set."""
        return self.source.task

    @property
    def content_digest(self) -> str | None:
        """Checksum of the complete data set."""
        return self.source.content_digest

    def preprocessing(self) -> Preprocessing | None:
        """What new files of all modalities need."""
        return self.source.preprocessing()

    def load_files(self, files: Mapping[str, Any], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, of the kept modalities only."""
        return self.source.load_files(files, modalities or tuple(self.modalities))


class _SelectedSplit(Split):
    def __init__(self, split: Split, names: tuple[str, ...]) -> None:
        masks = {name: np.asarray(mask) for name, mask in (split.present or {}).items() if name in names}
        kept = np.ones(len(split), dtype=bool)
        if len(masks) == len(names):  # else some kept modality is never absent
            kept = np.logical_or.reduce(list(masks.values()))
        self._split, self._names, self._rows = split, names, np.flatnonzero(kept)
        self.left_out = len(split) - len(self._rows)
        self.targets = split.targets[torch.from_numpy(self._rows)]
        self.groups = None if split.groups is None else [split.groups[row] for row in self._rows.tolist()]
        incomplete = {name: mask[self._rows] for name, mask in masks.items() if not mask[self._rows].all()}
        self.present = incomplete or None

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """Samples at ``indices`` of the remaining ones."""
        return self._selected(self._split.batch, indices, augment=augment, seed=seed)

    def late_batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The same, finished later as the complete split's."""
        return self._selected(self._split.late_batch, indices, augment=augment, seed=seed)

    def _selected(self, load: Callable[..., Batch], indices: Sequence[int], *, augment: bool, seed: int) -> Batch:
        positions = np.asarray(indices, dtype=np.int64)
        complete = load(self._rows[positions].tolist(), augment=augment, seed=seed)
        present = {name: torch.from_numpy(mask[positions]) for name, mask in (self.present or {}).items()}
        inputs = {name: complete.inputs[name] for name in self._names}
        return Batch(inputs, complete.targets, present or None, torch.from_numpy(positions), complete.tag)


def check_modality_names(names: Collection[str], modalities: Collection[str]) -> None:
    """Check names of modalities against those of a data set.

    Raises:
        ValueError: If a name is unknown, with the nearest one, or if there is no name.
    """
    unknown = [name for name in names if name not in modalities]
    if unknown or not names:
        value = f"'{unknown[0]}'" if unknown else "none"
        raise ValueError(
            f"Parameter `modalities` should name modalities of the data set, {', '.join(modalities)}. Found {value}."
            f"{nearest_name(unknown[0], modalities) if unknown else ''}"
        )
