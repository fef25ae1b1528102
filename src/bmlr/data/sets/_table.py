"""Data of one's own, prepared from a table of files."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr.data._base import SplitName
from bmlr.data.sets._stored import StoredData
from bmlr.data.sets._table_files import LAYOUT
from bmlr.data.store._store import Store


class TableData(StoredData):
    """A data set of one's own, made from a CSV table by ``bmlr prepare table TABLE.csv DEST``.

    The table has a row per sample, with its label and a file per modality; what it may hold is told by
    ``read_table`` of ``_table_files``. Once prepared, table and files are not needed any more. Sounds are log
    spectrograms, images and frames are normalised with ImageNet's mean and deviation. Samples may lack a modality.

    The splits are those of the table's column ``split``. Where there is no such column, they are drawn: no group is in
    two of them, and classes are in like proportion. Where it has no val, ``val_fraction`` of
    train becomes val, by group.

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
        super().__init__(
            root,
            protocol=protocol,
            frames=frames,
            split_seed=split_seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
        )
        if resplit and protocol == "paper":
            raise ValueError("Parameter `resplit` should be false where `protocol = 'paper'`. Found `resplit = True`.")
        self.resplit, self.augment, self.standardise = resplit, augment, standardise

    def _split_rows(self) -> dict[SplitName, np.ndarray]:
        store = self.store
        rows = self._published_rows()
        if self.resplit or not any(map(len, rows.values())):
            if self.protocol == "paper":
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': the table of {store.folder} has no column 'split'."
                )
            return self._draw_by_group(np.arange(len(store)), self.test_fraction)
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"The column 'split' of the table of {store.folder} names no sample '{name}'. Add some, or set "
                    "`resplit = True` to have all splits drawn by group."
                )
        if not len(rows["val"]):
            drawn = self._draw_by_group(rows["train"], 0.0)
            rows["train"], rows["val"] = drawn["train"], drawn["val"]
        if self.protocol == "clean":
            _check_groups(store, rows)
        return rows

    def _draw_by_group(self, rows: np.ndarray, test_fraction: float) -> dict[SplitName, np.ndarray]:
        groups = [self.store.samples[row].group for row in rows]
        return self._draw_rows(rows, groups, test_fraction=test_fraction)


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
