"""Published data sets that are one file of arrays."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice
from bmlr.data._base import SplitName
from bmlr.data._group_split import leave_out_shared
from bmlr.data.sets._array_content import ArrayContent
from bmlr.data.sets._array_layout import ArrayLayout
from bmlr.data.sets._arrays import ArrayData, listed_rows

_FILE = "data.npz"


class PublishedArrays(ArrayData):
    """A published data set, read from ``data.npz`` of its folder.

    A subclass declares folder and layout. ``clean`` leaves out of training and validation what shares a group with the
    test split; ``paper`` is the published split. A validation split is drawn from training where none is published, by
    class and group.

    Args:
        root: Folder of the data set, the folder that holds it, or the file; by default the environment variable
            ``BMLR_DATA``.
        protocol: ``clean`` or ``paper``.
        standardise: Shift and scale each feature to mean 0 and standard deviation 1 of the training split.
        split_seed: Seed of a drawn validation split.
        val_fraction: Fraction of training drawn for validation, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.
    """

    folder: ClassVar[str]
    layout: ArrayLayout

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        standardise: bool = True,
        split_seed: int = 0,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            protocol=protocol, standardise=standardise, words=1000, split_seed=split_seed, val_fraction=val_fraction
        )
        root = root or os.environ.get("BMLR_DATA")
        if not root:
            raise ValueError(
                f"Parameter `root` should be the folder that holds {self.folder}/{_FILE}. It is not given, and the "
                "environment variable BMLR_DATA, which may name it, is not set."
            )
        self.root = str(Path(root).expanduser())

    def _source(self) -> tuple[Path, ArrayLayout]:
        root = Path(self.root)
        candidates = [root / self.folder / _FILE, root / _FILE, root]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"There is no {candidates[0]} and no {candidates[1]}. Parameter `root` (--data.root) should be the "
                f"folder that holds {self.folder}/{_FILE}."
            )
        return path, self.layout

    def _split_rows(self, content: ArrayContent, groups: list[str]) -> dict[SplitName, np.ndarray]:
        rows = listed_rows(content.splits if content.splits is not None else np.zeros(0))
        return leave_out_shared(rows, groups) if self.protocol == "clean" else rows


class Wiki(PublishedArrays):
    """Wikipedia: images (weak) and texts (strong) of featured articles.

    2,866 sections in ten categories: SIFT visual words and tf-idf of Rasiwasia et al. (2010). The group of a section is
    its article, which the published split does not keep apart.

    See :class:`~bmlr.data.sets._published_arrays.PublishedArrays` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("wiki", root="data", protocol="paper").protocol  # reads no file yet
        'paper'
    """

    name: ClassVar[str] = "wiki"
    folder: ClassVar[str] = "wiki"
    layout = ArrayLayout(
        modalities={"image": "image", "text": "text"},
        labels="label",
        classes="class_names",
        split="split",
        split_values={"train": 0, "test": 1},
        groups="document",
    )

    def _group_names(self, content: ArrayContent) -> np.ndarray:
        """Article of each section: the name of a document without the section's number."""
        return np.array([str(name).rpartition("-")[0] for name in np.asarray(content.groups)])


class MFeat(PublishedArrays):
    """UCI Multiple Features: six sets of features of handwritten digits.

    2,000 digits in pixels, Fourier coefficients, profile correlations, Zernike moments, Karhunen-Loève coefficients and
    morphology. The split is that of Han et al. (2021).

    See :class:`~bmlr.data.sets._published_arrays.PublishedArrays` for the parameters.

    Example:
        >>> import bmlr.data
        >>> list(bmlr.data.create("mfeat", root="data").layout.modalities)  # reads no file yet
        ['pix', 'fou', 'fac', 'zer', 'kar', 'mor']
    """

    name: ClassVar[str] = "mfeat"
    folder: ClassVar[str] = "mfeat"
    layout = ArrayLayout(
        modalities={name: name for name in ("pix", "fou", "fac", "zer", "kar", "mor")},
        labels="label",
        split="split",
        split_values={"train": 0, "test": 1},
    )


class MMMO(PublishedArrays):
    """ICT-MMMO: audio and video sequences of 340 film reviews.

    Of Wöllmer et al. (2013), as the Memory Fusion Network has them, in two classes: a rating of 3.5 or more, or less.

    See :class:`~bmlr.data.sets._published_arrays.PublishedArrays` for the parameters.

    Example:
        >>> import bmlr.data
        >>> list(bmlr.data.create("mmmo", root="data").layout.modalities)  # reads no file yet
        ['audio', 'video']
    """

    name: ClassVar[str] = "mmmo"
    folder: ClassVar[str] = "mmmo"
    layout = ArrayLayout(
        modalities={"audio": "audio", "video": "video"},
        labels="label",
        split="split",
        split_values={"train": 0, "val": 1, "test": 2},
    )


class MOSIUtterances(PublishedArrays):
    """CMU-MOSI, one feature vector per utterance, in two classes.

    2,199 utterances of 93 videos, which are the groups.

    * ``features="leak-free"``: tf-idf of the transcript and openSMILE audio, in the folds of CMU's SDK by video.
    * ``features="published"``: the features of Poria et al. (2017), text, audio and video, in their split by video. Its
      text and video come from networks trained with the labels of the training split. Training and validation are far
      easier than test, so that neither epoch nor method can be chosen on validation.

    See :class:`~bmlr.data.sets._published_arrays.PublishedArrays` for the other parameters.

    Args:
        features: ``leak-free`` or ``published``.

    Example:
        >>> import bmlr.data
        >>> list(bmlr.data.create("mosi-utterances", root="data").layout.modalities)  # reads no file yet
        ['text', 'audio']
    """

    name: ClassVar[str] = "mosi-utterances"
    folder: ClassVar[str] = "mosi"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        features: Literal["leak-free", "published"] = "leak-free",
        protocol: Literal["clean", "paper"] = "clean",
        standardise: bool = True,
        split_seed: int = 0,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            root, protocol=protocol, standardise=standardise, split_seed=split_seed, val_fraction=val_fraction
        )
        self.features = check_choice("features", features, ("leak-free", "published"))
        published = features == "published"
        self.layout = ArrayLayout(
            modalities={u: u for u in ("text", "audio", "video")}
            if published
            else {"text": "transcript", "audio": "audio"},
            labels="label",
            split="split" if published else "standard_fold",
            split_values={"train": 0, "test": 1} if published else {"train": 0, "val": 1, "test": 2},
            groups="video_id",
        )

    def prepare(self) -> None:
        """Read and check the file, and warn of features that have seen labels."""
        if self.features == "published" and not self.modalities:
            warnings.warn(
                "Text and video of features=published have seen the training labels: training and validation are far "
                "easier than test. Do not choose epochs or methods by them; features=leak-free has none of this.",
                stacklevel=2,
            )
        super().prepare()
