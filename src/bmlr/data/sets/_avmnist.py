"""AV-MNIST: MNIST paired with spoken digits."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from bmlr._checks import check_choice, check_non_negative
from bmlr.data._base import SPLITS, SplitName, TrainingDefaults, check_files
from bmlr.data.readers._audio import read_audio
from bmlr.data.readers._idx import read_idx_images, read_idx_labels
from bmlr.data.readers._images import read_gray_image
from bmlr.data.sets._avmnist_files import Recording, checksum, find_images, find_recordings
from bmlr.data.sets._paired_digits import PairedDigits
from bmlr.data.store._cache import cached_arrays
from bmlr.data.transforms._degrade import clutter, move, principal_components, project
from bmlr.data.transforms._spectrogram import Spectrogram

_VERSION = 1  # of how the arrays are made; part of the cache's key
_SPECTROGRAM = Spectrogram(sample_rate=8000, n_fft=256, hop_length=128, n_mels=32, seconds=0.75)
_LARGEST_SHIFT = 14  # half of an image: beyond, the digit may be gone
SettingName = Literal["unheard-speakers", "easy", "paper-like"]
_TEST_SPEAKERS, _VAL_SPEAKERS = frozenset({"george", "lucas"}), frozenset({"theo"})


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Parameters and training of a named setting of :class:`AVMNIST`."""

    protocol: Literal["clean", "paper"]
    audio_snr_db: float | None = 10.0
    image_energy: float = 0.25
    image_rotation: float = 0.0
    image_shift: float = 0.0
    image_clutter: int = 0
    training: TrainingDefaults = dataclasses.field(default_factory=TrainingDefaults)


_SETTINGS: dict[SettingName, _Setting] = {
    "unheard-speakers": _Setting("clean"),
    "easy": _Setting("paper"),
    "paper-like": _Setting(
        "paper",
        audio_snr_db=0.0,
        image_energy=1.0,
        image_rotation=35.0,
        image_shift=6.0,
        image_clutter=3,
        training=TrainingDefaults(epochs=12, lr=1e-3, width=8, stem="imagenet", schedule="cosine"),
    ),
}


class AVMNIST(PairedDigits):
    """Handwritten and spoken digits, paired by class.

    MNIST and the Free Spoken Digit Dataset: the audio-visual MNIST of Vielzeuf et al. (CentralNet, 2018), rebuilt from
    public files, with their reduction of the images to a few principal components. Every image is one sample; its
    recording is drawn with replacement from those of the same digit and the same split.

    * Images, if the folder holds MNIST's t10k files only: the first 70 % (0–6999) train, the next 10 % (7000–7999)
      validation, the last 20 % (8000–9999) test. If it holds the train files too, the published split: t10k is test,
      the last twelfth of the train files (5,000) validation, the rest training.
    * Recordings under ``protocol="clean"``: speakers are disjoint. george and lucas are heard in test only, theo in
      validation only, all others in training.
    * Recordings under ``protocol="paper"``: the recordings' own split by index. 0–4 are test and 5–9 validation, the
      rest training; every speaker is heard in all splits.

    Audio becomes a log mel spectrogram of 32 bands and 47 frames, after white noise is mixed in at ``audio_snr_db``
    over the clip of 0.75 s, other noise for every sample. Images are distorted, if asked for, and projected on the
    leading principal components of the training images. Both are shifted and scaled to mean 0 and standard deviation
    1 of the training split. All of it is drawn from ``pairing_seed`` and a sample's number alone, made once and cached.

    A ``setting`` gives the parameters that are left out, and may say how to train on it. What is given counts more.
    Runs record the values, without the setting's name. ``paper-like`` is as unbalanced as the paper's data: audio is
    strong, and joint training leaves images at about a third of the classes right, of which they can reach two thirds.

    How the noise of the first two was chosen: by the gap between what a modality reaches alone and its readout
    inside joint training, on validation and for no other method. Accuracy in %, mean of epochs 8 to 10, one seed,
    ResNet-18 of width 8 with the small stem, concatenation, batch 64, Adam with 1e-3; epochs differ by up to 6 points:

    ========  =======  ===========  ==========  ==============  ==============
    protocol  SNR, dB  audio alone  multimodal  audio in joint  image in joint
    ========  =======  ===========  ==========  ==============  ==============
    clean     none     64.5         79.4        55.2            48.3
    clean     10       55.1         76.4        49.5            48.2
    clean     0        51.5         64.5        38.8            49.6
    paper     10       97.1         98.8        88.7            51.8
    paper     0        88.7         95.5        77.2            50.7
    ========  =======  ===========  ==========  ==============  ==============

    The image alone reaches 58.9 whatever the audio, so it can be learnt, and lags by 7 to 11 points in joint training.
    Under ``clean``, 10 dB is where the two gaps differ most (image 10.7, audio 5.6). A readout is the multimodal
    decision layer on one modality's features alone, so that part of every gap is due to what the classifier expects of
    the other. A second seed of joint training at 10 dB under ``clean`` gave 70.1 multimodal, 50.7 audio and 49.2 image.

    Files are looked for in ``root/mnist``, ``root/MNIST/raw`` or ``root`` (``train-`` and ``t10k-`` files, packed or
    not, as ``images-idx3-ubyte`` or ``images.idx3-ubyte``) and in ``root/fsdd/recordings``,
    ``root/free-spoken-digit-dataset/recordings`` or ``root/recordings`` (``{digit}_{speaker}_{index}.wav``).

    Args:
        root: Folder of both; by default the environment variable ``BMLR_DATA``.
        setting: Values of what is left out. unheard-speakers is protocol clean with audio_snr_db 10 and image_energy
            0.25. easy is the same with protocol paper, where all speakers are in training. paper-like, with strong
            audio and weak images, is protocol paper with audio_snr_db 0, image_energy 1, image_rotation 35,
            image_shift 6 and image_clutter 3; runs on it have by default width 8, stem imagenet, lr 0.001, schedule
            cosine and 12 epochs.
        protocol: ``clean`` or ``paper``; by default the setting's.
        pairing_seed: Seed of pairs, noise and distortions.
        audio_snr_db: Signal-to-noise ratio of the clips in dB; None adds no noise.
        image_energy: Least fraction of the training images' variance held by the kept principal components, in
            (0, 1]; 1 keeps the images as they are. By default the setting's, as the next three.
        image_rotation: Largest rotation in degrees, either way.
        image_shift: Largest shift in pixels, either way and in both directions.
        image_clutter: Number of 8 × 8 pieces of other images laid over each image.
        cache: Folder of the cache; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by default.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("avmnist", root="data", protocol="clean")  # reads no file yet
        >>> data.modalities["audio"].shape, data.modalities["image"].shape
        ((1, 32, 47), (1, 28, 28))
    """

    name: ClassVar[str] = "avmnist"
    purposes: ClassVar[tuple[str, ...]] = ("pairs", "audio noise", "affine", "clutter")
    spectrogram: ClassVar[Spectrogram] = _SPECTROGRAM
    image_size: ClassVar[int] = 28

    def __init__(  # noqa: PLR0913  (every parameter is an option)
        self,
        root: str | Path | None = None,
        *,
        setting: SettingName = "unheard-speakers",
        protocol: Literal["clean", "paper"] | None = None,
        pairing_seed: int = 0,
        audio_snr_db: float | Literal["setting"] | None = "setting",
        image_energy: float | None = None,
        image_rotation: float | None = None,
        image_shift: float | None = None,
        image_clutter: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        root = root or os.environ.get("BMLR_DATA")
        if not root:
            raise ValueError(
                "Parameter `root` should be the folder with the images and recordings, in mnist and fsdd. It is not "
                "given, and the environment variable BMLR_DATA, which may name it, is not set."
            )
        self.setting = check_choice("setting", setting, get_args(SettingName))
        chosen = _SETTINGS[self.setting]
        self.defaults = chosen.training
        image_energy = chosen.image_energy if image_energy is None else image_energy
        image_rotation = chosen.image_rotation if image_rotation is None else image_rotation
        image_shift = chosen.image_shift if image_shift is None else image_shift
        super().__init__(
            pairing_seed=pairing_seed,
            audio_snr_db=chosen.audio_snr_db if audio_snr_db == "setting" else audio_snr_db,
            image_clutter=chosen.image_clutter if image_clutter is None else image_clutter,
        )
        self.root = str(Path(root).expanduser())
        self.protocol = check_choice("protocol", protocol or chosen.protocol, ("clean", "paper"))
        if not 0 < image_energy <= 1:
            raise ValueError(f"Parameter `image_energy` should lie in (0, 1]. Found `image_energy = {image_energy}`.")
        self.image_energy = float(image_energy)
        self.image_rotation = check_non_negative("image_rotation", image_rotation)
        if not 0 <= image_shift <= _LARGEST_SHIFT:
            raise ValueError(
                f"Parameter `image_shift` should lie in [0, {_LARGEST_SHIFT}]. Found `image_shift = {image_shift}`."
            )
        self.image_shift = float(image_shift)
        self.cache = None if cache is None else str(Path(cache).expanduser())

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name.

        The setting is in their values, so that equal data are one configuration however they were named.
        """
        return {name: value for name, value in super().hparams.items() if name != "setting"}

    def prepare(self) -> None:
        """Make the arrays of all splits, or read them from the cache.

        Raises:
            FileNotFoundError: If a folder or file is missing; the message says where it was looked for.
            ValueError: If a file cannot be read, a recording is misnamed, or a split lacks a class; the message names
                the file.
        """
        _ = self._arrays

    @property
    def content_digest(self) -> str:
        """SHA-256 checksum over names and contents of all files; the folder's place does not change it."""
        return self._files[2]

    @functools.cached_property
    def _files(self) -> tuple[list[Path], list[Recording], str]:
        """Image files, recordings, and the checksum of all."""
        root = Path(self.root)
        image_files, recordings = find_images(root), find_recordings(root)
        return image_files, recordings, checksum([*image_files, *(recording.path for recording in recordings)])

    def _load_arrays(self) -> dict[str, np.ndarray]:
        image_files, recordings, files_checksum = self._files
        key = {
            **{name: value for name, value in self.hparams.items() if name not in self.location_parameters},
            "version": _VERSION,
            "files": files_checksum,
        }
        return cached_arrays(
            self.name,
            key,
            lambda: self._build(image_files, recordings),
            None if self.cache is None else Path(self.cache),
            verify=True,
        )

    def _groups(self, name: SplitName) -> list[str]:
        return [recording.split("_")[1] for recording in self.recordings(name)]

    def recordings(self, name: SplitName) -> list[str]:
        """Name of the recording paired with each sample of a split."""
        names: list[str] = self._arrays[f"{name}_recordings"].tolist()
        return names

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, without noise and distortion.

        Their shapes are (1, 1, 32, 47) and (1, 1, 28, 28). The recording is cut or padded to 0.75 s and gets no noise.
        The image should show, as MNIST's do, a white digit on black, centred and upright, filling the middle 20 of 28
        pixels; transparent pixels count as black. It is resized and projected on the principal components, with no
        distortion.

        Args:
            files: The recording as ``audio`` (any format libsndfile reads) and the image as ``image`` (PNG, JPEG,
                BMP, GIF, TIFF or WebP).
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read, or ``files`` does not hold exactly the two; the message names it.
        """
        names = modalities or self.modalities
        check_files(files, names)
        arrays = self._statistics
        values = {}
        if "audio" in names:
            values["audio"] = _SPECTROGRAM(read_audio(Path(files["audio"]), _SPECTROGRAM.sample_rate))[None]
        if "image" in names:
            image = read_gray_image(Path(files["image"]), 28, 28)
            values["image"] = project(image[None], arrays["image_mean"], arrays["image_components"])[None]
        return self._standardised_inputs(values)

    def _build(self, image_files: Sequence[Path], recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
        """Standardised arrays of all splits, and their statistics."""
        clips = {
            recording.path.name: _SPECTROGRAM.fit_length(read_audio(recording.path, _SPECTROGRAM.sample_rate))
            for recording in recordings
        }
        splits = _split_images(image_files)
        arrays: dict[str, np.ndarray] = {}
        for name, (images, labels) in splits.items():
            split_recordings = [recording for recording in recordings if self._split_of(recording) == name]
            paired = _pair(labels, split_recordings, self._rng(name, "pairs"), name)
            arrays[f"{name}_targets"] = labels
            arrays[f"{name}_recordings"] = np.array(paired)
            arrays[f"{name}_audio"] = np.stack(
                [self._noisy_spectrogram(clips[recording], name, i) for i, recording in enumerate(paired)]
            )
            arrays[f"{name}_image"] = self._distort(images, name)
        arrays["image_mean"], arrays["image_components"] = principal_components(
            arrays["train_image"], self.image_energy
        )
        for name in SPLITS:
            projected = project(arrays[f"{name}_image"], arrays["image_mean"], arrays["image_components"])
            arrays[f"{name}_image"] = projected[:, None]
        self._standardise_splits(arrays)
        return arrays

    def _split_of(self, recording: Recording) -> SplitName:
        if self.protocol == "clean":
            if recording.speaker in _TEST_SPEAKERS:
                return "test"
            return "val" if recording.speaker in _VAL_SPEAKERS else "train"
        return ("test", "val")[recording.index // 5] if recording.index < 10 else "train"

    def _distort(self, images: np.ndarray, split: SplitName) -> np.ndarray:
        """Images (N, 28, 28) rotated, shifted and cluttered, float32 in [0, 1]."""
        scaled = images.astype(np.float32) / 255
        if self.image_rotation or self.image_shift:
            draws = self._rng(split, "affine").uniform(-1, 1, (len(scaled), 3))
            scaled = move(scaled, np.radians(self.image_rotation) * draws[:, 0], self.image_shift * draws[:, 1:])
        if self.image_clutter:
            scaled = clutter(scaled, self.image_clutter, lambda sample: self._rng(split, "clutter", sample))
        return scaled


def _split_images(files: Sequence[Path]) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split, from the files of :func:`find_images`."""
    images, labels = _read_pair(files[0], files[1])
    if len(files) == 2:
        first, second = 7 * len(images) // 10, 8 * len(images) // 10
        return {
            "train": (images[:first], labels[:first]),
            "val": (images[first:second], labels[first:second]),
            "test": (images[second:], labels[second:]),
        }
    train_images, train_labels = _read_pair(files[2], files[3])
    first = len(train_images) - len(train_images) // 12
    return {
        "train": (train_images[:first], train_labels[:first]),
        "val": (train_images[first:], train_labels[first:]),
        "test": (images, labels),
    }


def _read_pair(image_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx_images(image_file), read_idx_labels(label_file)
    if len(images) != len(labels):
        raise ValueError(
            f"{label_file} should hold {len(images)} labels, as many as {image_file} has images. Found {len(labels)}."
        )
    return images, labels


def _pair(labels: np.ndarray, recordings: Sequence[Recording], rng: np.random.Generator, split: SplitName) -> list[str]:
    """Draw a recording of the same digit for every image."""
    by_digit: dict[int, list[str]] = {digit: [] for digit in range(10)}
    for recording in recordings:
        by_digit[recording.digit].append(recording.path.name)
    missing_audio = [digit for digit, names in by_digit.items() if not names]
    missing_images = sorted(set(range(10)) - set(labels.tolist()))
    for kind, digits in (("recordings", missing_audio), ("images", missing_images)):
        if digits:
            raise ValueError(f"Every split should have all digits. The {kind} of split '{split}' lack {digits}.")
    # One draw per image: a sample's recording must not depend on the other images.
    return [
        by_digit[digit][int(u * len(by_digit[digit]))]
        for digit, u in zip(labels.tolist(), rng.random(len(labels)), strict=True)
    ]
