"""Data sets of published feature files: text, vision and audio."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from bmlr._checks import check_choice
from bmlr.data._base import SPLITS, Modality, SplitName, TrainingDefaults, check_files
from bmlr.data.sets._forms import Form
from bmlr.data.sets._sentiment_files import MODALITIES, PUBLISHED_FILES, read_sequence
from bmlr.data.sets._sentiment_store import open_source, prepare_sentiment, split_samples
from bmlr.data.sets._stored import StoredData
from bmlr.data.store._cache import content_digest, read_manifest
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import StoredSample
from bmlr.data.store._store import Store
from bmlr.tasks import Multiclass, Regression, Task


class FeatureFileData(StoredData):
    """Clips in text, vision and audio, from a published file of features.

    The file is read without executing anything in it, and converted once, by ``bmlr prepare`` or into the cache.

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
    #: What the targets are: ``classes`` or the name of a task on numbers.
    _target_kind: str = "classes"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        file: str | None = None,
        standardise: bool = True,
        incomplete: Literal["mask", "zeros"] = "mask",
        cache: str | Path | None = None,
    ) -> None:
        root = root or os.environ.get("BMLR_DATA")
        if not root:
            raise ValueError(
                "Parameter `root` should be the folder that bmlr prepare made, or the published file. It is not given, "
                "and the environment variable BMLR_DATA, which may name the folder of either, is not set."
            )
        super().__init__(root, protocol=protocol)
        self.file = file
        self.standardise = standardise
        self.incomplete = check_choice("incomplete", incomplete, ("mask", "zeros"))
        self.cache = None if cache is None else str(Path(cache).expanduser())
        published = PUBLISHED_FILES[self.name]
        self.classes = published.scale.classes
        widths = {"text": published.text, **published.widths}
        self.modalities = {name: Modality("sequence", (50, widths[name])) for name in MODALITIES}

    @property
    def task(self) -> Task:
        """Classes or numbers."""
        return Multiclass(len(self.classes)) if self.classes else Regression()

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name; the task only where it is other than classes."""
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
        """Published score of each sample of a split."""
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
        check_files(files, forms, optional=forms)
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
        labels, names = self._classified(arrays["scores"])
        targets = labels if self.classes else arrays["scores"].astype(np.float32)
        columns = (arrays[name].tolist() for name in ("ids", "split", "videos", "scores"))
        samples = tuple(
            StoredSample(identity, names[target], SPLITS[split], video or identity, {}, {"score": score})
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

    def _classified(self, scores: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Class index of each score, shape (N,), and names of the classes."""
        scale = PUBLISHED_FILES[self.name].scale
        return scale.classify(scores), scale.classes

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        return split_samples(self._source[1], self.protocol)[0]

    def _standardises(self, name: str) -> bool:
        return self.standardise and name != "text"

    def _masks(self) -> bool:
        return self.incomplete == "mask"
