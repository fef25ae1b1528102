"""Data of one's own, from a table of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import SplitName
from bmlr.data._group_split import check_groups
from bmlr.data.sets._grouped import GroupedData
from bmlr.data.sets._table_store import prepare_table
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._store import Store


class Manifest(GroupedData):
    """Data of one's own, made from a CSV table by ``bmlr prepare manifest TABLE.csv DEST``.

    The table has a row per sample, with its label and a file per modality; see :func:`read_table` of ``_table_files``.
    Once prepared, table and files are not needed any more. Audio becomes log spectrograms; images and frames are
    normalised with ImageNet's mean and standard deviation, frames of other channels with their own. Texts become
    indices of tokens. The task is that of the table: classes, several labels, or numbers. Samples may lack a modality.

    The splits are those of the table's column ``split``. Without that column they are drawn by group, with the classes
    in proportion. If the column names no val, ``val_fraction`` of train becomes val, by group.

    * ``protocol="clean"``: a table with a group in two splits is refused.
    * ``protocol="paper"``: the table's split is taken as it is.

    Args:
        root: The folder that ``bmlr prepare`` made, or its parent if that holds no other of this data set.
        protocol: ``clean`` or ``paper``.
        resplit: Draw the splits by group, whatever the table's split; under ``clean`` only.
        frames: Frames per video.
        augment: Crop and mirror images and frames at random in training, and choose frames at random.
        standardise: Shift and scale each feature of arrays, and each channel of arrays of frames, to mean 0 and
            standard deviation 1 of the training split.
        tokeniser: What makes tokens of texts: ``words``, a vocabulary of the training split, or the tokeniser of a
            checkpoint of Hugging Face, ``hf/NAME-or-folder``.
        vocabulary: Most words of the vocabulary. Words of one text only are not in it.
        max_tokens: Most tokens of a text; the end of longer ones is cut off.
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction of the samples drawn for validation, in (0, 1).
        test_fraction: Fraction of the samples drawn for testing, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("manifest", root="prepared", val_fraction=0.2)  # reads no file yet
        >>> data.protocol, data.modalities
        ('clean', {})
    """

    name: ClassVar[str] = "manifest"

    def __init__(  # noqa: PLR0913
        self,
        root: str | Path,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        resplit: bool = False,
        frames: int = 3,
        augment: bool = True,
        standardise: bool = True,
        tokeniser: str = "words",
        vocabulary: int = 20_000,
        max_tokens: int = 256,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            root, protocol=protocol, split_seed=split_seed, val_fraction=val_fraction, test_fraction=test_fraction
        )
        if resplit and protocol == "paper":
            raise ValueError("Parameter `resplit` should be false where `protocol = 'paper'`. Found `resplit = True`.")
        self.resplit, self.augment, self.standardise = resplit, augment, standardise
        self.frames = check_integer("frames", frames, 1)
        if not re.fullmatch("words|hf/.+", tokeniser):
            raise ValueError(
                f"Parameter `tokeniser` should be 'words' or 'hf/NAME-or-folder'. Found `tokeniser = {tokeniser!r}`."
            )
        self.tokeniser = tokeniser
        self.vocabulary = check_integer("vocabulary", vocabulary, 1)
        self.max_tokens = check_integer("max_tokens", max_tokens, 1)

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Read the table's files into a store in ``dest``."""
        return prepare_table(source, dest, options)

    def _standardises(self, name: str) -> bool:
        return self.standardise

    def _is_flow(self, name: str) -> bool:
        return bool(self.store.key["key"]["kinds"][name] == "flow")

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        groups = [sample.group for sample in store.samples]
        if self.resplit or not any(sample.split for sample in store.samples):
            if self.protocol == "paper":
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': the table of {store.folder} has no column 'split'."
                )
            return self._draw_rows(store, np.arange(len(store)), groups, test_fraction=self.test_fraction)
        rows = self._published_rows(store)
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"The column 'split' of the table of {store.folder} names no sample '{name}'. Add some, or set "
                    "`resplit = True` to have all splits drawn by group."
                )
        rows = self._with_validation(store, rows, groups)
        if self.protocol == "clean":
            check_groups(rows, groups, "The table")
        return rows
