"""CREMA-D, Kinetics-Sounds and AVE, from prepared folders: spectrograms and frames, under both protocols."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_unit_interval
from bmlr.batch import Batch
from bmlr.data._base import Modality, MultimodalData, Split, SplitName
from bmlr.data._group_split import split_by_group
from bmlr.data.readers._registry import reader_of
from bmlr.data.readers._video import VIDEO_SUFFIXES
from bmlr.data.sets._layouts import EMOTIONS, audio_reader
from bmlr.data.store._store import Store, find_store, open_store
from bmlr.data.transforms._frames import augment_frames

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)


_SIZE = 224


class AudioVisualSplit(Split):
    """Some samples of a prepared store: spectrograms, and frames chosen and transformed batch by batch.

    Args:
        store: Prepared data with the modalities ``audio`` and ``video``.
        rows: Positions of the samples in the store.
        frames: Frames per sample.
    """

    def __init__(self, store: Store, rows: np.ndarray, frames: int) -> None:
        self.store, self.rows, self.frames = store, np.asarray(rows, dtype=np.int64), frames
        self.targets = torch.from_numpy(store.targets[self.rows])
        self.groups = [store.samples[row].group for row in self.rows]
        self.ids = [store.samples[row].id for row in self.rows]

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``: ``audio`` (B, 1, bins, steps) and ``video`` (B, T, 3, H, W), float32.

        With ``augment`` the frames are random ones of their segments and go through the random transforms of
        training; otherwise they are the middle ones.
        """
        positions = np.asarray(indices, dtype=np.int64)
        rows = self.rows[positions]
        seeds = [sample_seed(seed, int(position)) for position in positions]
        starts, ends = self.store.offsets["video"][rows], self.store.offsets["video"][rows + 1]
        chosen = np.stack([
            start + choose_frames(int(end - start), self.frames, np.random.default_rng(own) if augment else None)
            for start, end, own in zip(starts, ends, seeds, strict=True)
        ])  # fmt: skip
        frames = torch.from_numpy(self.store.arrays["video"][chosen])
        audio = self.store.arrays["audio"][self.store.offsets["audio"][rows]]
        inputs = {
            "audio": torch.from_numpy(np.asarray(audio, dtype=np.float32)),
            "video": augment_frames(frames, frames.shape[2], torch.tensor(seeds, dtype=torch.int64), train=augment),
        }
        return Batch(inputs, self.targets[positions], None, torch.from_numpy(positions))


class _AudioVisual(MultimodalData):
    """A prepared data set of sound and frames.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` (no group in two splits) or ``paper`` (the published split).
        frames: Frames per sample; None takes the data set's (CREMA-D 1, the others 3).
        split_seed: Seed of what is drawn of the split.
        val_fraction: Share of the validation split, where none is published.
        test_fraction: Share of the test split under ``clean``.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    usual_frames: ClassVar[int] = 3

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
        self.root = str(root)
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        self.frames = self.usual_frames if frames is None else check_integer("frames", frames, 1)
        self.split_seed = check_integer("split_seed", split_seed, 0)
        self.val_fraction = check_unit_interval("val_fraction", val_fraction)
        self.test_fraction = check_unit_interval("test_fraction", test_fraction)
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not share or val_fraction + test_fraction >= 1:
                raise ValueError(
                    f"Parameter `{name}` should be above 0, and both shares together below 1. Found "
                    f"`val_fraction = {val_fraction}`, `test_fraction = {test_fraction}`."
                )
        self.classes = self._usual_classes()
        self.modalities = {
            "audio": Modality("spectrogram", audio_reader(self._usual_seconds()).spectrogram.shape),
            "video": Modality("frames", (self.frames, 3, _SIZE, _SIZE)),
        }
        self._store: Store | None = None
        self._rows: dict[SplitName, np.ndarray] = {}

    def prepare(self) -> None:
        """Open the prepared folder and split it; ``classes`` and ``modalities`` are then those of the files.

        Raises:
            FileNotFoundError: If there is no prepared data; the message says how to make it.
            ValueError: If it is damaged, of another data set, without a published split where ``protocol`` asks for
                it, or too small to split.
        """
        if self._store is not None:
            return
        store = open_store(find_store(Path(self.root), self.name))
        found = store.key["key"].get("layout")
        if found != self.name or set(store.modalities) != {"audio", "video"}:
            raise ValueError(f"Parameter `root` should hold a prepared '{self.name}'. {store.folder} holds '{found}'.")
        rows = self._published(store) if self.protocol == "paper" else self._clean(store)
        empty = [name for name in _SPLITS if not len(rows[name])]
        if empty:
            raise ValueError(f"{store.folder} holds too few clips: split '{empty[0]}' would be empty.")
        size = store.modalities["video"].shape[1]
        self.classes = store.classes
        self.modalities = {
            "audio": store.modalities["audio"],
            "video": Modality("frames", (self.frames, 3, size, size)),
        }
        self._store, self._rows = store, rows

    @property
    def store(self) -> Store:
        """The prepared data."""
        self.prepare()
        if self._store is None:
            raise AssertionError("prepare() opens the store or raises.")
        return self._store

    def split(self, name: SplitName) -> AudioVisualSplit:
        """One split; groups are the actors or the source videos."""
        check_choice("name", name, _SPLITS)
        return AudioVisualSplit(self.store, self._rows[name], self.frames)

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, read as the prepared ones were: the middle frames, no random transform.

        Args:
            files: A video as ``video``, and its sound as ``audio``, a recording or a video. The sound of a video may be
                left out: it is read from the video.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read, or ``files`` does not hold what is needed; the message names it.
        """
        given = {name: Path(path) for name, path in files.items()}
        names = modalities or self.modalities
        if "audio" in names and "video" in given and given["video"].suffix.lower() in VIDEO_SUFFIXES:
            given.setdefault("audio", given["video"])
        if set(given) != set(names):
            wanted = {"audio": "a recording as 'audio'", "video": "a video as 'video'"}
            raise ValueError(
                f"`files` should name {' and '.join(wanted[name] for name in names)}. Found {list(files)}."
            )
        readers = {name: reader_of(parameters) for name, parameters in self.store.key["readers"].items()}
        values = {name: readers[name](path).values for name, path in given.items()}
        inputs = {}
        if "audio" in names:
            inputs["audio"] = torch.from_numpy(values["audio"][None].astype(np.float32))
        if "video" in names:
            frames = values["video"][choose_frames(len(values["video"]), self.frames, None)]
            inputs["video"] = augment_frames(torch.from_numpy(frames[None]), frames.shape[1], None, train=False)
        return inputs

    def _usual_classes(self) -> tuple[str, ...]:
        return ()

    def _usual_seconds(self) -> float:
        return 10.0

    def _clean(self, store: Store) -> dict[SplitName, np.ndarray]:
        groups = [clip.group for clip in store.samples]
        return split_by_group(
            groups,
            store.targets,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.split_seed,
        )

    def _published(self, store: Store) -> dict[SplitName, np.ndarray]:
        splits = np.array([clip.split or "" for clip in store.samples])
        rows: dict[SplitName, np.ndarray] = {name: np.flatnonzero(splits == name) for name in _SPLITS}
        for name in ("train", "test"):
            if not len(rows[name]):
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper': {store.folder} was prepared without a published "
                    f"{name} split. Prepare it with the published lists, or choose 'clean'."
                )
        if unlisted := int((splits == "").sum()):
            warnings.warn(
                f"{unlisted} clips of {store.folder} are in no published split and are left out.", stacklevel=3
            )
        if not len(rows["val"]):
            rows["train"], rows["val"] = self._carve(store, rows["train"])
        return rows

    def _carve(self, store: Store, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A validation split out of the published training split, clip by clip: groups are shared, as in that split."""
        ids = [store.samples[row].id for row in train]
        splits = split_by_group(
            ids, store.targets[train], val_fraction=self.val_fraction, test_fraction=0.0, seed=self.split_seed
        )
        return train[splits["train"]], train[splits["val"]]


class CREMAD(_AudioVisual):
    """CREMA-D: 7,442 clips of 91 actors who say a sentence in one of six emotions (Cao et al., 2014).

    Made from the published ``AudioWAV`` and ``VideoFlash`` folders by ``bmlr prepare crema-d SOURCE DEST``; then the
    sources are not needed any more. Audio is the log spectrogram of 3 s (257 × 188), video one frame per clip by
    default: in training a random one of each equal segment of the clip, otherwise the segment's middle.

    * ``protocol="clean"``: by actor; every actor is in one split.
    * ``protocol="paper"``: the published lists, which the preparation was given; all actors are in both splits. They
      have no validation split: ``val_fraction`` of the training clips are drawn for it, of all classes alike.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` or ``paper``.
        frames: Frames per clip; None for 1.
        split_seed: Seed of what is drawn of the split.
        val_fraction: Share of the validation split.
        test_fraction: Share of the test split under ``clean``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("crema-d", root="prepared")  # reads no file yet
        >>> data.modalities["audio"].shape, data.classes
        ((1, 257, 188), ('NEU', 'HAP', 'SAD', 'FEA', 'DIS', 'ANG'))
    """

    name: ClassVar[str] = "crema-d"
    usual_frames: ClassVar[int] = 1

    def _usual_classes(self) -> tuple[str, ...]:
        return EMOTIONS

    def _usual_seconds(self) -> float:
        return 3.0


class KineticsSounds(_AudioVisual):
    """Kinetics-Sounds: videos of ten seconds of about 31 actions that are seen and heard (Arandjelović et al., 2017).

    Made from videos by ``bmlr prepare kinetics-sounds SOURCE DEST``; then the sources are not needed any more.
    Repositories differ in the classes, of which ``prepare`` counts what it finds. Audio is the log spectrogram of the
    video's first 10 s (257 × 625), video three frames by default: in training a random one of each equal segment of
    the video, otherwise the segment's middle.

    * ``protocol="clean"``: by source video; no video is in two splits.
    * ``protocol="paper"``: the published lists, which the preparation was given, or the folders train, val and test.
      Where there is no validation split, ``val_fraction`` of the training clips are drawn for it.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` or ``paper``.
        frames: Frames per clip; None for 3.
        split_seed: Seed of what is drawn of the split.
        val_fraction: Share of the validation split, where none is published.
        test_fraction: Share of the test split under ``clean``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("kinetics-sounds", root="prepared").modalities["video"].shape  # reads no file yet
        (3, 3, 224, 224)
    """

    name: ClassVar[str] = "kinetics-sounds"


class AVE(_AudioVisual):
    """AVE: 4,143 videos of ten seconds with an event of one of 28 classes that is seen and heard (Tian et al., 2018).

    Made from the published folder by ``bmlr prepare ave SOURCE DEST``; then the source is not needed any more. The
    video's class is to be told; the times of the event are in the store's clips (``extra``). Audio and video are as
    in :class:`KineticsSounds`.

    * ``protocol="clean"``: by source video; some videos have several events, all in one split.
    * ``protocol="paper"``: the lists of the published folder.

    Args:
        root: The prepared folder, or the one it alone was made in.
        protocol: ``clean`` or ``paper``.
        frames: Frames per video; None for 3.
        split_seed: Seed of what is drawn of the split.
        val_fraction: Share of the validation split, where none is published.
        test_fraction: Share of the test split under ``clean``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ave", root="prepared", frames=4).modalities["video"].shape  # reads no file yet
        (4, 3, 224, 224)
    """

    name: ClassVar[str] = "ave"


def choose_frames(count: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Positions of ``wanted`` of ``count`` frames, one in each equal segment of the video, in order.

    Args:
        count: Frames there are.
        wanted: Frames to choose; if there are fewer, some are chosen more than once.
        rng: Draws a place in each segment; None takes its middle.

    Example:
        >>> choose_frames(10, 3, None).tolist()
        [1, 5, 8]
    """
    places = 0.5 if rng is None else rng.random(wanted)
    chosen: np.ndarray = ((np.arange(wanted) + places) * count / wanted).astype(np.int64)
    return chosen.clip(max=count - 1)


def sample_seed(seed: int, position: int) -> int:
    """Seed of the random transforms of one sample, below 2^63: a hash of the epoch's seed and its position."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
