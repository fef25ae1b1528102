"""Spoken digits shipped with the package: synthetic speech, many voices, 8 kHz."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.resources import files

import numpy as np

from bmlr.data._base import SplitName

_ASSETS = files("bmlr.data") / "_assets"
_RECORDING, _INDEX = _ASSETS / "spoken_digits.flac", _ASSETS / "spoken_digits.json"


@dataclasses.dataclass(frozen=True)
class SpokenDigits:
    """Clips of spoken digits.

    Attributes:
        waves: Samples of each clip in [−1, 1], shape (N,) of its own, float32.
        digits: Digit of each clip, shape (clips,), int64.
        voices: Voice of each clip, eSpeak NG's accent and variant.
        splits: Split of the data each clip belongs to; no variant is in two splits.
        sample_rate: Samples per second.
    """

    waves: tuple[np.ndarray, ...]
    digits: np.ndarray
    voices: tuple[str, ...]
    splits: tuple[SplitName, ...]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.waves)

    def positions(self, split: SplitName, digit: int) -> np.ndarray:
        """Indices of the clips of a digit in one split."""
        return np.flatnonzero((np.array(self.splits) == split) & (self.digits == digit))


def load_spoken_digits() -> SpokenDigits:
    """Read the clips.

    Raises:
        ValueError: If the package's files are damaged.

    Example:
        >>> spoken = load_spoken_digits()
        >>> len(spoken), spoken.sample_rate, spoken.voices[0], int(spoken.digits[0])
        (1980, 8000, 'en-GB-scotland+Alex', 0)
    """
    import soundfile  # imported here: most data sets need no audio

    try:
        index = json.loads(_INDEX.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{_INDEX} is damaged ({error}): please install the package again.") from error
    try:
        with _RECORDING.open("rb") as file:
            samples, rate = soundfile.read(file, dtype="float32")
    except soundfile.SoundFileError as error:
        raise ValueError(f"{_RECORDING} is damaged ({error}): please install the package again.") from error
    if rate != index["sample_rate"] or len(samples) != sum(index["length"]):
        raise ValueError(f"{_RECORDING} does not fit its index {_INDEX.name}: please install the package again.")
    names = list(index["voices"])
    voices = tuple(names[voice] for voice in index["voice"])
    return SpokenDigits(
        tuple(samples[a : a + n] for a, n in zip(index["start"], index["length"], strict=True)),
        np.array(index["digit"]),
        voices,
        tuple(index["voices"][voice] for voice in voices),
        rate,
    )


def checksum() -> str:
    """SHA-256 checksum of the audio and its index."""
    return hashlib.sha256(_RECORDING.read_bytes() + _INDEX.read_bytes()).hexdigest()
