"""CREMA-D, Kinetics-Sounds and AVE: spectrograms and frames, under both protocols."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr.data._base import Modality, SplitName
from bmlr.data.readers._video import VIDEO_SUFFIXES
from bmlr.data.sets._layouts import EMOTIONS, audio_reader
from bmlr.data.sets._stored import StoredData

_SIZE = 224


class AudioVisual(StoredData):
    """A prepared data set of audio and frames.

    Before it is prepared, ``classes`` and ``modalities`` are those of the published data set.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` (no group in two splits) or ``paper`` (the published split).
        frames: Frames per sample; None takes the data set's own number (CREMA-D 1, the others 3).
        split_seed: Seed of what is drawn of the split.
        val_fraction: Fraction of the validation split, where none is published.
        test_fraction: Fraction of the test split under ``clean``.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    usual_frames: ClassVar[int] = 3
    usual_classes: ClassVar[tuple[str, ...]] = ()
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
            root,
            protocol=protocol,
            frames=self.usual_frames if frames is None else frames,
            split_seed=split_seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
        )
        self.classes = self.usual_classes
        self.modalities = {
            "audio": Modality("spectrogram", audio_reader(self.usual_seconds).spectrogram.shape),
            "video": Modality("frames", (self.frames, 3, _SIZE, _SIZE)),
        }

    def _complete(self, files: Mapping[str, Path], names: Collection[str]) -> Mapping[str, Path]:
        """The audio of a video file may be left out: it is read from the video."""
        paths = {name: Path(path) for name, path in files.items()}
        if "audio" in names and "video" in paths and paths["video"].suffix.lower() in VIDEO_SUFFIXES:
            paths.setdefault("audio", paths["video"])
        return paths

    def _split_rows(self) -> dict[SplitName, np.ndarray]:
        store = self.store
        if self.protocol == "clean":
            groups = [sample.group for sample in store.samples]
            return self._draw_rows(np.arange(len(store)), groups, test_fraction=self.test_fraction)
        rows = self._published_rows()
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': {store.folder} was prepared without a published "
                    f"{name} split. Prepare it with the published lists, or choose 'clean'."
                )
        if unlisted := len(store) - sum(map(len, rows.values())):
            warnings.warn(
                f"{unlisted} samples of {store.folder} are in no published split and are left out.", stacklevel=6
            )
        if not len(rows["val"]):
            # Sample by sample: the published training and test split share groups as well.
            ids = [store.samples[row].id for row in rows["train"]]
            drawn = self._draw_rows(rows["train"], ids, test_fraction=0.0)
            rows["train"], rows["val"] = drawn["train"], drawn["val"]
        return rows


class CREMAD(AudioVisual):
    """CREMA-D: 7,442 clips of 91 actors who say a sentence in one of six emotions (Cao et al., 2014).

    Made from the published ``AudioWAV`` and ``VideoFlash`` folders by ``bmlr prepare crema-d SOURCE DEST``; then the
    sources are not needed any more. Audio is the log spectrogram of 3 s (257 × 188), video one frame per clip by
    default: in training a random one of each equal segment of the clip, otherwise the segment's middle.

    * ``protocol="clean"``: by actor; every actor is in one split.
    * ``protocol="paper"``: the published lists, which the preparation was given; all actors are in both splits. They
      have no validation split, on which an epoch could be selected: ``val_fraction`` of the training clips are drawn
      for it, of all classes alike.

    Parameters are those of :class:`AudioVisual`.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("crema-d", root="prepared")  # reads no file yet
        >>> data.modalities["audio"].shape, data.classes
        ((1, 257, 188), ('NEU', 'HAP', 'SAD', 'FEA', 'DIS', 'ANG'))
    """

    name: ClassVar[str] = "crema-d"
    usual_frames: ClassVar[int] = 1
    usual_classes: ClassVar[tuple[str, ...]] = EMOTIONS
    usual_seconds: ClassVar[float] = 3.0


class KineticsSounds(AudioVisual):
    """Kinetics-Sounds: videos of ten seconds of about 31 actions that are seen and heard (Arandjelović et al., 2017).

    Made from videos by ``bmlr prepare kinetics-sounds SOURCE DEST``; then the sources are not needed any more.
    Repositories differ in the classes, of which ``prepare`` counts what it finds. Audio is the log spectrogram of the
    video's first 10 s (257 × 625), video three frames by default: in training a random one of each equal segment of
    the video, otherwise the segment's middle.

    * ``protocol="clean"``: by source video; no video is in two splits.
    * ``protocol="paper"``: the published lists, which the preparation was given, or the folders train, val and test.
      Where there is no validation split, ``val_fraction`` of the training clips are drawn for it.

    Parameters are those of :class:`AudioVisual`.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("kinetics-sounds", root="prepared").modalities["video"].shape  # reads no file yet
        (3, 3, 224, 224)
    """

    name: ClassVar[str] = "kinetics-sounds"


class AVE(AudioVisual):
    """AVE: 4,143 videos of ten seconds with an event of one of 28 classes that is seen and heard (Tian et al., 2018).

    Made from the published folder by ``bmlr prepare ave SOURCE DEST``; then the source is not needed any more. The
    video's class is to be told; the times of the event are in the store's clips (``extra``). Audio and video are as
    in :class:`KineticsSounds`.

    * ``protocol="clean"``: by source video; some videos have several events, all in one split.
    * ``protocol="paper"``: the lists of the published folder.

    Parameters are those of :class:`AudioVisual`.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ave", root="prepared", frames=4).modalities["video"].shape  # reads no file yet
        (4, 3, 224, 224)
    """

    name: ClassVar[str] = "ave"
