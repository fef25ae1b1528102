"""Base class of the stored audio-visual data sets."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import Modality, SplitName
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._container import check_installed
from bmlr.data.sets._grouped import GroupedData
from bmlr.data.sets._media import audio_reader, make_audio_reader, make_video_reader, note_lengths
from bmlr.data.store._build import prepare_samples
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._plausibility import check_labels
from bmlr.data.store._samples import SourceSample
from bmlr.data.store._store import Store

_SIZE = 224  # height and width of the prepared frames, unless the preparation is told another


class AudioVisualData(GroupedData):
    """A stored data set of audio and video.

    Made by ``bmlr prepare NAME SOURCE DEST``; the source is not needed after that. Audio is a log spectrogram (257
    bins). Of a video, ``frames`` frames are given, one per equal segment: a random one in training, else the middle.

    * ``protocol="clean"``: no group is in two splits.
    * ``protocol="paper"``: the published split. Without a published validation split, ``val_fraction`` of the
      training clips are drawn for it; groups are then shared, as they are in the published split.

    Args:
        root: The folder that ``bmlr prepare`` made, or its parent if that holds no other of this data set.
        protocol: ``clean`` or ``paper``.
        frames: Frames per sample; None takes the data set's (CREMA-D 1, the others 3).
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction of the samples drawn for validation, in (0, 1).
        test_fraction: Fraction of the samples drawn for testing under ``clean``, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range.
    """

    #: Classes in the order of the targets; empty where they are those of the source.
    published_classes: ClassVar[tuple[str, ...]] = ()
    #: Frames per sample, unless given.
    usual_frames: ClassVar[int] = 3
    #: Length of the audio in seconds, unless given to the preparation.
    usual_seconds: ClassVar[float] = 10.0

    def __init__(
        self,
        root: str | Path,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        frames: int | None = None,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            root, protocol=protocol, split_seed=split_seed, val_fraction=val_fraction, test_fraction=test_fraction
        )
        self.frames = self.usual_frames if frames is None else check_integer("frames", frames, 1)
        self.classes = self.published_classes
        self.modalities = {
            "audio": Modality("spectrogram", audio_reader(self.usual_seconds).spectrogram.shape),
            "video": Modality("frames", (self.frames, 3, _SIZE, _SIZE)),
        }

    @staticmethod
    @abstractmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Samples of the published folder, without reading their media."""

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Decode the published folder into a store in ``dest``."""
        check_installed()
        options.refuse(cls.name, "file", "allow_outside")
        samples = cls.list_samples(source, options.lists)
        notes: list[str] = []
        if not cls.published_classes:
            samples, notes = check_labels(samples, source, join_variants=True)
        seconds = options.seconds or cls.usual_seconds
        readers: dict[str, FileReader] = {
            "audio": make_audio_reader(options, seconds),
            "video": make_video_reader(options, seconds),
        }
        result = prepare_samples(
            cls.name,
            samples,
            readers,
            cls.published_classes or _labels(samples),
            dest,
            key={"layout": cls.name},
            workers=options.workers,
            max_rejected=options.max_rejected,
            progress=options.progress,
        )
        result = note_lengths(result, readers)
        return dataclasses.replace(result, notes=(*notes, *result.notes))

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        if self.protocol == "clean":
            groups = [sample.group for sample in store.samples]
            return self._draw_rows(store, np.arange(len(store)), groups, test_fraction=self.test_fraction)
        rows = self._listed_rows(store)
        # A group each: the published split shares groups.
        return self._with_validation(store, rows, [sample.id for sample in store.samples])


def _labels(samples: Collection[SourceSample]) -> list[str]:
    """Labels of the usable samples, sorted."""
    labels = sorted({sample.label for sample in samples if sample.problem is None})
    if not labels:
        example = next((f", such as {sample.id}: {sample.problem}" for sample in samples), "")
        raise ValueError(f"No sample of the source can be used{example}.")
    return labels
