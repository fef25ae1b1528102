"""CMU-MOSI, CMU-MOSEI, CH-SIMS, UR-FUNNY and MUStARD."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import SplitName
from bmlr.data._group_split import check_fractions, split_by_group
from bmlr.data.sets._feature_files import FeatureFileData
from bmlr.data.sets._sentiment_classes import CLASS_NAMES, SIMS_CLASSES, sentiment_classes, sims_classes
from bmlr.data.store._store import Store
from bmlr.tasks import Sentiment, Task


class SentimentData(FeatureFileData):
    """Clips of opinions with a sentiment score in [−3, 3].

    Scores become classes, or stay numbers (``task``). Read are MMSA's ``aligned_50.pkl`` and ``unaligned_50.pkl`` (BERT
    features of width 768), MulT's ``<name>_data.pkl`` and ``<name>_data_noalign.pkl`` and MultiBench's
    ``<name>_raw.pkl`` (GloVe, 300).

    See :class:`~bmlr.data.sets._feature_files.FeatureFileData` for the protocols and the other parameters.

    Args:
        num_classes: Number of classes: 7 limits a score to [−3, 3] and rounds it, 3 takes its sign, 2 splits at 0.
        conversion: ``round``; or, for 7 classes, ``bins`` bounded by −2, −1, 0, 1 and 2, where 0 itself is neutral.
        drop_zeros: Leave out the samples whose score is exactly zero ("Non0"); with 2 classes only.
        task: ``classes``; or ``sentiment``, the score itself with Acc-2, Acc-7, F1, MAE and correlation, by absolute
            loss; or ``regression``, the score with MAE, RMSE and correlation, by squared loss.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.
    """

    def __init__(  # noqa: PLR0913  (every parameter is an option)
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        file: str | None = None,
        num_classes: Literal[7, 3, 2] = 7,
        conversion: Literal["round", "bins"] = "round",
        drop_zeros: bool = False,
        task: Literal["classes", "sentiment", "regression"] = "classes",
        standardise: bool = True,
        incomplete: Literal["mask", "zeros"] = "mask",
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            root, protocol=protocol, file=file, standardise=standardise, incomplete=incomplete, cache=cache
        )
        sentiment_classes(np.zeros(1), num_classes, conversion)
        for parameter, value, neutral, needed in (
            ("conversion", conversion, "round", 7),
            ("drop_zeros", drop_zeros, False, 2),
        ):
            if value != neutral and num_classes != needed:
                raise ValueError(
                    f"Parameter `{parameter}` should be {neutral!r} unless `num_classes = {needed}`. "
                    f"Found `{parameter} = {value!r}`, `num_classes = {num_classes}`."
                )
        self.num_classes, self.conversion, self.drop_zeros = num_classes, conversion, drop_zeros
        self._target_kind = check_choice("task", task, ("classes", "sentiment", "regression"))
        self.classes = ("negative", "positive") if drop_zeros else CLASS_NAMES[num_classes]
        if task != "classes":
            if (num_classes, drop_zeros) != (7, False):
                raise ValueError(f"Parameters `num_classes` and `drop_zeros` are for classes. Found `task = {task!r}`.")
            self.classes = ()

    @property
    def task(self) -> Task:
        """Classes, sentiment or numbers."""
        return Sentiment() if self._target_kind == "sentiment" else super().task

    def _classified(self, scores: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        return sentiment_classes(scores, self.num_classes, self.conversion), self.classes or CLASS_NAMES[7]

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        rows = super()._split_rows(store)
        if self.drop_zeros:
            scores = self._source[1]["scores"]
            rows = {split: indices[scores[indices] != 0] for split, indices in rows.items()}
        return rows


class MOSI(SentimentData):
    """CMU-MOSI: 2,199 clips of opinions on movies, of 93 speakers' videos.

    See :class:`~bmlr.data.sets._sentiment.SentimentData` for files, protocols and parameters.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("mosi", root="MOSI/Processed/aligned_50.pkl", num_classes=3)  # reads no file yet
        >>> data.classes
        ('negative', 'neutral', 'positive')
    """

    name: ClassVar[str] = "mosi"


class MOSEI(SentimentData):
    """CMU-MOSEI: 22,856 clips, the larger successor of MOSI.

    See :class:`~bmlr.data.sets._sentiment.SentimentData` for files, protocols and parameters.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("mosei", root="MOSEI", file="aligned_50.pkl", num_classes=2)  # reads no file yet
        >>> data.classes
        ('negative', 'non-negative')
    """

    name: ClassVar[str] = "mosei"


class CHSIMS(FeatureFileData):
    """CH-SIMS: 2,281 clips of Chinese films, series and shows.

    Of Yu et al. (2020), with a sentiment score in [−1, 1], of all modalities together. Read is MMSA's
    ``unaligned_39.pkl``, with BERT features of width 768. Its splits share source videos.

    * ``protocol="paper"``: the published train, valid and test.
    * ``protocol="clean"``: all splits are drawn by source video.

    See :class:`~bmlr.data.sets._feature_files.FeatureFileData` for the other parameters.

    Args:
        num_classes: Number of classes: 5 bounds them by −0.7, −0.1, 0.1 and 0.7, 3 by −0.1 and 0.1, 2 by 0.
        task: ``classes``; or ``regression``, the score with MAE, RMSE and correlation, by squared loss.
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction of the samples drawn for validation, in (0, 1).
        test_fraction: Fraction of the samples drawn for testing, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ch-sims", root="SIMS/Processed/unaligned_39.pkl", num_classes=2).classes  # reads no file
        ('non-positive', 'positive')
    """

    name: ClassVar[str] = "ch-sims"

    def __init__(  # noqa: PLR0913  (every parameter is an option)
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        file: str | None = None,
        num_classes: Literal[5, 3, 2] = 3,
        task: Literal["classes", "regression"] = "classes",
        standardise: bool = True,
        incomplete: Literal["mask", "zeros"] = "mask",
        split_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            root, protocol=protocol, file=file, standardise=standardise, incomplete=incomplete, cache=cache
        )
        sims_classes(np.zeros(1), num_classes)
        self.num_classes = num_classes
        self._target_kind = check_choice("task", task, ("classes", "regression"))
        self.classes = SIMS_CLASSES[num_classes][0] if task == "classes" else ()
        if task != "classes" and num_classes != 3:
            raise ValueError(f"Parameter `num_classes` is for classes. Found `task = {task!r}`.")
        self.split_seed = check_integer("split_seed", split_seed, 0)
        check_fractions(val_fraction, test_fraction, positive=True)
        self.val_fraction, self.test_fraction = float(val_fraction), float(test_fraction)

    @property
    def left_out(self) -> list[str]:
        """Samples left out by protocol ``clean``, always empty."""
        return []

    def _classified(self, scores: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        return sims_classes(scores, self.num_classes), SIMS_CLASSES[self.num_classes][0]

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        if self.protocol == "paper":
            return super()._split_rows(store)
        return split_by_group(
            [sample.group for sample in store.samples],
            sims_classes(self._source[1]["scores"], 3),
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.split_seed,
        )


class MultiBenchData(FeatureFileData):
    """Files of MultiBench whose identifiers do not name the video: there is only the published split.

    See :class:`~bmlr.data.sets._feature_files.FeatureFileData` for the other parameters.

    Args:
        protocol: ``paper``.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["paper"] = "paper",
        file: str | None = None,
        standardise: bool = True,
        incomplete: Literal["mask", "zeros"] = "mask",
        cache: str | Path | None = None,
    ) -> None:
        check_choice("protocol", protocol, ("paper",))
        super().__init__(
            root, protocol=protocol, file=file, standardise=standardise, incomplete=incomplete, cache=cache
        )


class URFunny(MultiBenchData):
    """UR-FUNNY: 16,514 punchlines of TED talks, half of them humorous.

    Of Hasan et al. (2019). Read is MultiBench's ``humor.pkl``, with GloVe features of width 300. Its identifiers do not
    name the talk, so that there is only ``protocol="paper"``.

    See :class:`~bmlr.data.sets._feature_files.FeatureFileData` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ur-funny", root="humor.pkl").classes  # reads no file yet
        ('not humorous', 'humorous')
    """

    name: ClassVar[str] = "ur-funny"


class MUStARD(MultiBenchData):
    """MUStARD: 690 utterances of television series, half of them sarcastic.

    Of Castro et al. (2019). Read is MultiBench's ``sarcasm.pkl``, with GloVe features of width 300. Its identifiers do
    not name speaker and scene, so that there is only ``protocol="paper"``.

    See :class:`~bmlr.data.sets._feature_files.FeatureFileData` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("mustard", root="sarcasm.pkl").classes  # reads no file yet
        ('not sarcastic', 'sarcastic')
    """

    name: ClassVar[str] = "mustard"
