"""CMU-MOSI and CMU-MOSEI."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from bmlr._checks import check_choice
from bmlr.data._base import SPLITS, Modality, SplitName, TrainingDefaults
from bmlr.data.sets._forms import Form
from bmlr.data.sets._sentiment_classes import CLASS_NAMES, sentiment_classes
from bmlr.data.sets._sentiment_files import MODALITIES, PUBLISHED_FILES, read_sequence
from bmlr.data.sets._sentiment_store import open_source, prepare_sentiment, split_samples
from bmlr.data.sets._stored import StoredData
from bmlr.data.store._cache import content_digest, read_manifest
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import StoredSample
from bmlr.data.store._store import Store
from bmlr.tasks import Multiclass, Regression, Sentiment, Task


class SentimentData(StoredData):
    """Clips of opinions in text, vision and audio.

    Sentiment scores in [−3, 3] become classes, or stay numbers (``task``). Read are, without executing anything in
    them, MMSA's ``aligned_50.pkl`` and ``unaligned_50.pkl`` (BERT features of width 768) and MulT's
    ``<name>_data.pkl`` and ``<name>_data_noalign.pkl``
    (GloVe, 300). The file is converted once, by ``bmlr prepare`` or into the cache.

    Values that are NaN or infinite become 0 and are counted. Padding is left out: steps beyond a stated length, steps
    outside BERT's attention mask, and zeros at both ends of a sequence. A time step of zeros between others stays; the
    encoder takes it for padding. A sample whose sequence is all padding lacks the modality.

    * ``protocol="paper"``: the published train, valid and test.
    * ``protocol="clean"`` (default): no source video is in two splits. The published test split stays whole, so that
      results compare; validation loses the samples that share a video with it, training those that share one with
      either. They are named in ``left_out``. The published split is one of videos, so there should be none.

    Args:
        root: The prepared folder, the published file, or a folder that holds it; by default the environment variable
            ``BMLR_DATA``.
        protocol: ``clean`` or ``paper``.
        file: Name of the published file, where there are several (``unaligned_50.pkl``).
        num_classes: 7, 3 or 2; see :func:`sentiment_classes`.
        conversion: ``round`` or, for 7 classes, ``bins``.
        drop_zeros: Leave out the samples whose score is exactly zero ("Non0"); with 2 classes only.
        task: ``classes``; or ``sentiment``, the score itself with Acc-2, Acc-7, F1, MAE and correlation, by absolute
            loss; or ``regression``, the score with MAE, RMSE and correlation, by squared loss.
        standardise: Shift and scale each dimension of vision and audio to mean 0 and standard deviation 1 of the time
            steps of the training split. Text is left as it is.
        incomplete: How an absent modality is given: ``mask`` marks it in ``present``; ``zeros`` does not, for methods
            without masks (AGM). To the Transformer encoder both are the same.
        cache: Folder of the cache, used where ``root`` is not prepared; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by
            default.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.
    """

    #: The paper's settings but for the width: 128 for the Transformers, which the paper does not state.
    defaults: TrainingDefaults = TrainingDefaults(width=32)

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
        root = root or os.environ.get("BMLR_DATA")
        if not root:
            raise ValueError(
                "Parameter `root` should be the prepared folder or the published file, unless the environment "
                f"variable `BMLR_DATA` names its folder. Found `root = {root!r}` and no `BMLR_DATA`."
            )
        super().__init__(root, protocol=protocol)
        self.file = file
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
        self.standardise = standardise
        self.incomplete = check_choice("incomplete", incomplete, ("mask", "zeros"))
        self.cache = None if cache is None else str(Path(cache).expanduser())
        self.classes = ("negative", "positive") if drop_zeros else CLASS_NAMES[num_classes]
        if task != "classes":
            if (num_classes, drop_zeros) != (7, False):
                raise ValueError(f"Parameters `num_classes` and `drop_zeros` are for classes. Found `task = {task!r}`.")
            self.classes = ()
        widths = {"text": 768, **PUBLISHED_FILES[self.name].widths}
        self.modalities = {name: Modality("sequence", (50, widths[name])) for name in MODALITIES}

    @property
    def task(self) -> Task:
        """Classes, sentiment or numbers."""
        if self._target_kind == "classes":
            return Multiclass(len(self.classes))
        return Sentiment() if self._target_kind == "sentiment" else Regression()

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name; without the task where it is classes, as before there were others."""
        entries = {name: value for name, value in super().hparams.items() if name != "task"}
        return entries if self._target_kind == "classes" else {**entries, "task": self._target_kind}

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Convert a published file to arrays in ``dest``."""
        media = ("size", "fps", "seconds", "min_seconds", "allow_silent", "frame_rate", "max_pixels", "dtype")
        options.refuse(cls.name, *media, "max_rejected", "train_list", "val_list", "test_list", "allow_outside")
        return prepare_sentiment(cls.name, source, dest, file=options.file)

    @property
    def left_out(self) -> list[str]:
        """Samples left out by protocol ``clean``."""
        ids: list[str] = self._source[1]["ids"][split_samples(self._source[1], self.protocol)[1]].tolist()
        return ids

    def scores(self, name: SplitName) -> list[float]:
        """Sentiment score of each sample of a split, in [−3, 3]."""
        split = self.split(name)
        return [split.store.samples[row].extra["score"] for row in split.rows]

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, cleaned and standardised.

        Their shapes are (1, T, d).

        Args:
            files: A ``.npy`` file of shape (T, d) per modality, of the features the model was trained on. A modality
                without a file is absent: zeros, which the Transformer encoder masks.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read, has another width or holds zeros only, or ``files`` names no or
                unknown modalities.
        """
        known = self._file_forms.forms
        forms = {name: known[name] for name in modalities or known}
        if not files or not set(files) <= set(forms):
            raise ValueError(f"`files` should name files for some of {list(forms)}. Found {list(files)}.")
        inputs = {}
        for name, form in forms.items():
            width = form.modality.shape[1]
            steps = read_sequence(Path(files[name]), width) if name in files else np.zeros((0, width))
            unpadded = Form(Modality("sequence", (1, width)), form.statistics)
            inputs[name] = unpadded.inputs([steps], [0], train=False)
        return inputs

    @functools.cached_property
    def _source(self) -> tuple[Path, dict[str, np.ndarray]]:
        """Folder and arrays of the converted file."""
        return open_source(self.name, Path(self.root), self.file, None if self.cache is None else Path(self.cache))

    def _open(self) -> Store:
        folder, arrays = self._source
        labels = sentiment_classes(arrays["scores"], self.num_classes, self.conversion)
        names = self.classes or CLASS_NAMES[7]
        targets = labels if self.classes else arrays["scores"].astype(np.float32)
        columns = (arrays[name].tolist() for name in ("ids", "split", "videos", "scores"))
        samples = tuple(
            StoredSample(identity, names[target], SPLITS[split], video, {}, {"score": score})
            for target, identity, split, video, score in zip(labels.tolist(), *columns, strict=True)
        )
        return Store(
            folder=folder,
            classes=self.classes,
            samples=samples,
            targets=targets,
            modalities={name: Modality("sequence", (-1, arrays[name].shape[1])) for name in MODALITIES},
            arrays={name: arrays[name] for name in MODALITIES},
            offsets={name: np.array(arrays[f"{name}_offsets"]) for name in MODALITIES},
            key={} if self.classes else {"task": "regression"},
            digest=content_digest(read_manifest(folder)),
        )

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        rows, _ = split_samples(self._source[1], self.protocol)
        if self.drop_zeros:
            scores = self._source[1]["scores"]
            rows = {split: indices[scores[indices] != 0] for split, indices in rows.items()}
        return rows

    def _standardises(self, name: str) -> bool:
        return self.standardise and name != "text"

    def _masks(self) -> bool:
        return self.incomplete == "mask"


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
