"""Stored data sets with splits drawn by group."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import SPLITS, SplitName
from bmlr.data._group_split import check_fractions, split_by_group, with_validation
from bmlr.data.sets._stored import StoredData
from bmlr.data.store._store import Store
from bmlr.tables import format_count


class GroupedData(StoredData):
    """A stored data set with splits drawn by group.

    Args:
        root: The folder that ``bmlr prepare`` made, or its parent if that holds no other of this data set.
        protocol: ``clean`` or ``paper``.
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction of the samples drawn for validation, in (0, 1).
        test_fraction: Fraction of the samples drawn for testing, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        super().__init__(root, protocol=protocol)
        self.split_seed = check_integer("split_seed", split_seed, 0)
        check_fractions(val_fraction, test_fraction, positive=True)
        self.val_fraction, self.test_fraction = float(val_fraction), float(test_fraction)

    def _published_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        """Indices of the samples of each published split."""
        splits = np.array([sample.split or "" for sample in store.samples])
        return {name: np.flatnonzero(splits == name) for name in SPLITS}

    def _listed_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        """Indices of the samples of each published split, training and test required."""
        rows = self._published_rows(store)
        for split in ("train", "test"):
            if not len(rows[split]):
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': {store.folder} was prepared without a published "
                    f"{split} split. Prepare it with the published lists, or choose 'clean'."
                )
        if unlisted := len(store) - sum(map(len, rows.values())):
            warnings.warn(
                f"{store.folder}: {format_count(unlisted, 'sample')} in no published split left out.", stacklevel=2
            )
        return rows

    def _with_validation(
        self, store: Store, rows: dict[SplitName, np.ndarray], groups: Sequence[str]
    ) -> dict[SplitName, np.ndarray]:
        """Splits with a validation split, drawn from training by group where none is published.

        Args:
            store: The store.
            rows: Indices of the samples of each split.
            groups: Group of every sample of the store.
        """
        return with_validation(rows, groups, store.targets, val_fraction=self.val_fraction, seed=self.split_seed)

    def _draw_rows(
        self, store: Store, rows: np.ndarray, groups: Sequence[str], *, test_fraction: float = 0.0
    ) -> dict[SplitName, np.ndarray]:
        """Split ``rows`` by group."""
        positions_of = split_by_group(
            groups,
            store.targets[rows],
            val_fraction=self.val_fraction,
            test_fraction=test_fraction,
            seed=self.split_seed,
        )
        return {name: rows[positions] for name, positions in positions_of.items()}
