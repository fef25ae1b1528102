"""Base class of the data sets of written and spoken digits."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import SPLITS, ArraySplit, Modality, MultimodalData, Preprocessing, SplitName
from bmlr.data.sets._standardise import standardise
from bmlr.data.transforms._noise import add_noise
from bmlr.data.transforms._spectrogram import Spectrogram


class PairedDigits(MultimodalData):
    """Images and audio of digits, paired by class and cached.

    Pairs stay within a split.

    Args:
        pairing_seed: Seed of pairs, noise and distortions.
        audio_snr_db: Signal-to-noise ratio of the audio in dB; None adds no noise.
        image_clutter: Number of 8 × 8 pieces of other images laid over each image.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    #: Purposes of random numbers. The position seeds the generator, so that the order must never change.
    purposes: ClassVar[tuple[str, ...]]
    #: Form of the audio.
    spectrogram: ClassVar[Spectrogram]
    #: Height and width of the images in pixels.
    image_size: ClassVar[int]

    def __init__(self, *, pairing_seed: int, audio_snr_db: float | None, image_clutter: int) -> None:
        self.pairing_seed = check_integer("pairing_seed", pairing_seed, 0)
        if audio_snr_db is not None and not math.isfinite(audio_snr_db):
            raise ValueError(
                "Parameter `audio_snr_db` should be finite, or None for no noise. "
                f"Found `audio_snr_db = {audio_snr_db}`."
            )
        self.audio_snr_db = None if audio_snr_db is None else float(audio_snr_db)
        self.image_clutter = check_integer("image_clutter", image_clutter, 0)
        self.protocol = "clean"
        self.classes = tuple(str(digit) for digit in range(10))
        self.modalities = {
            "audio": Modality("spectrogram", self.spectrogram.shape),
            "image": Modality("image", (1, self.image_size, self.image_size)),
        }

    @abstractmethod
    def _load_arrays(self) -> dict[str, np.ndarray]:
        """Arrays of all splits, from the cache if possible."""

    @abstractmethod
    def _groups(self, name: SplitName) -> list[str]:
        """Group of each sample of a split."""

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self._load_arrays()

    @functools.cached_property
    def _statistics(self) -> Mapping[str, np.ndarray]:
        """Arrays that new files need: those of no split."""
        return {name: x for name, x in self._arrays.items() if name.partition("_")[0] not in SPLITS}

    def preprocessing(self) -> Preprocessing:
        """Statistics of the training split."""
        return Preprocessing(self.classes, self.modalities, arrays=self._statistics)

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Take statistics in place of those of the arrays."""
        self._statistics = preprocessing.arrays

    def split(self, name: SplitName) -> ArraySplit:
        """One split; groups are the speakers or voices."""
        check_choice("name", name, SPLITS)
        return ArraySplit(
            {modality: self._arrays[f"{name}_{modality}"] for modality in self.modalities},
            np.array(self._arrays[f"{name}_targets"]),
            groups=self._groups(name),
        )

    def _rng(self, split: SplitName, purpose: str, *numbers: int) -> np.random.Generator:
        """Generator of its own for every split, purpose and sample."""
        return np.random.default_rng([self.pairing_seed, SPLITS.index(split), self.purposes.index(purpose), *numbers])

    def _noisy_spectrogram(self, clip: np.ndarray, split: SplitName, sample: int) -> np.ndarray:
        """Spectrogram of a clip of full length after noise is added."""
        if self.audio_snr_db is not None:
            clip = add_noise(clip, self.audio_snr_db, self._rng(split, "audio noise", sample))
        return self.spectrogram(clip)

    def _standardise_splits(self, arrays: dict[str, np.ndarray]) -> None:
        """Standardise all splits in place, by the training split.

        The statistics are added for new files.
        """
        for modality in self.modalities:
            train = arrays[f"train_{modality}"]
            statistics = np.array([train.mean(dtype=np.float64), train.std(dtype=np.float64)])
            if statistics[1] == 0:
                raise ValueError(f"The training inputs of '{modality}' should not all be one value.")
            arrays[f"{modality}_statistics"] = statistics
            for name in SPLITS:
                arrays[f"{name}_{modality}"] = standardise(arrays[f"{name}_{modality}"], statistics)

    def _standardised_inputs(self, values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Inputs of a new sample, standardised as in training."""
        return {
            name: torch.from_numpy(standardise(x, self._statistics[f"{name}_statistics"])) for name, x in values.items()
        }
