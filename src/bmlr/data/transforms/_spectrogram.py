"""Log spectrograms of audio."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Literal

import numpy as np

from bmlr._checks import check_choice, check_integer, check_positive
from bmlr.data.transforms._librosa import load_librosa

_LOG_FLOOR = 1e-7  # keeps the logarithm of silence finite; the value of the audio-visual baselines


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    r"""Log spectrogram of audio cut or filled to a fixed length.

    With ``n_mels = None`` it is the magnitude form of the audio-visual baselines, otherwise the mel power form:

    .. math::
        \log(|\mathrm{STFT}(x)| + 10^{-7}) \qquad\text{or}\qquad \log(M\,|\mathrm{STFT}(x)|^2 + 10^{-7})

    where M is librosa's (Slaney) mel filter bank and the STFT has a Hann window and centred frames.

    Args:
        sample_rate: Samples per second.
        n_fft: Window of the STFT in samples.
        hop_length: Step between frames in samples.
        n_mels: Number of mel bands; None for all ``n_fft // 2 + 1`` linear frequencies.
        seconds: Length of the audio. Longer waveforms are cut.
        fill: Filling of shorter waveforms: ``silence``, or ``repeat`` to repeat them, as the audio-visual baselines
            do.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> Spectrogram(sample_rate=8000, n_fft=256, hop_length=128, n_mels=32, seconds=0.75).shape
        (1, 32, 47)
    """

    sample_rate: int = 8000
    n_fft: int = 256
    hop_length: int = 128
    n_mels: int | None = 32
    seconds: float = 0.75
    fill: Literal["silence", "repeat"] = "silence"

    def __post_init__(self) -> None:
        check_integer("sample_rate", self.sample_rate, 1)
        check_integer("n_fft", self.n_fft, 2)
        check_integer("hop_length", self.hop_length, 1)
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"Parameter `hop_length` should be at most `n_fft = {self.n_fft}`, else samples are skipped. "
                f"Found `hop_length = {self.hop_length}`."
            )
        if self.n_mels is not None:
            check_integer("n_mels", self.n_mels, 1)
            if self.n_mels > self.n_fft // 2 + 1:
                raise ValueError(
                    f"Parameter `n_mels` should be at most n_fft // 2 + 1 = {self.n_fft // 2 + 1}. "
                    f"Found `n_mels = {self.n_mels}`."
                )
        check_positive("seconds", self.seconds)
        check_choice("fill", self.fill, ("silence", "repeat"))
        if self.num_samples < self.n_fft:
            raise ValueError(
                f"Parameter `seconds` should be at least one window of {self.n_fft} samples at {self.sample_rate} per "
                f"second. Found `seconds = {self.seconds}`."
            )

    @property
    def num_samples(self) -> int:
        """Length of the audio in samples."""
        return round(self.seconds * self.sample_rate)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (1, bins, frames) of a spectrogram."""
        bins = self.n_fft // 2 + 1 if self.n_mels is None else self.n_mels
        return 1, bins, 1 + (self.num_samples - self.n_fft % 2) // self.hop_length  # librosa pads n_fft // 2 per side

    def fit_length(self, waveform: np.ndarray) -> np.ndarray:
        """Cut or fill a waveform (N,) to the fixed length, float32.

        Raises:
            ValueError: If the waveform is not one-dimensional, is empty or holds NaN or infinity.
        """
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"`waveform` should have shape (N,) with N at least 1. Found shape {waveform.shape}.")
        if not np.isfinite(waveform).all():
            raise ValueError("`waveform` should be finite. Found NaN or infinity.")
        cut = waveform[: self.num_samples]
        if self.fill == "repeat":
            repeated: np.ndarray = np.resize(cut, self.num_samples)
            return repeated
        padded: np.ndarray = np.pad(cut, (0, self.num_samples - len(cut)))
        return padded

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Spectrogram of a waveform.

        Args:
            waveform: Samples at ``sample_rate``, shape (N,).

        Returns:
            Shape (1, bins, frames), float32.

        Raises:
            ValueError: If the waveform is not one-dimensional, is empty or holds NaN or infinity.
        """
        magnitude = np.abs(load_librosa().stft(self.fit_length(waveform), n_fft=self.n_fft, hop_length=self.hop_length))
        if self.n_mels is not None:
            magnitude = _mel_filters(self.sample_rate, self.n_fft, self.n_mels) @ magnitude**2
        logarithm: np.ndarray = np.log(magnitude + _LOG_FLOOR, dtype=np.float32)
        return logarithm[None]


@functools.lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Mel filter bank, shape (n_mels, bins).

    Librosa would make it again for every waveform.
    """
    librosa = load_librosa()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters", category=UserWarning)  # an error just below
        filters = np.asarray(librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels), dtype=np.float32)
    if not filters.any(axis=1).all():
        raise ValueError(
            f"Parameter `n_mels` should be small enough that every band holds a frequency of the STFT with "
            f"`n_fft = {n_fft}` at {sample_rate} samples per second. Found `n_mels = {n_mels}`."
        )
    filters.flags.writeable = False
    return filters
