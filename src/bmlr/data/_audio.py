"""Recordings: reading them with every check, mixing in noise, and the spectrograms encoders see."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from bmlr._checks import check_choice, check_integer, check_positive

_LOG_FLOOR = 1e-7  # keeps the logarithm of silence finite; the value of the audio-visual baselines
MOST_SECONDS = 4 * 3600  # of a recording or film; a file of a megabyte can stand for days of silence
MOST_SAMPLES = 1 << 28  # per channel, before and after resampling: a gigabyte in memory
_BLOCK = 1 << 16  # samples per channel read at a time
_UNKNOWN_SIZE = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    r"""Log spectrogram of a clip of fixed length.

    With ``n_mels = None`` it is the magnitude form of the audio-visual baselines, otherwise the mel power form:

    .. math::
        \log(|\mathrm{STFT}(x)| + 10^{-7}) \qquad\text{or}\qquad \log(M\,|\mathrm{STFT}(x)|^2 + 10^{-7})

    where M is librosa's (Slaney) mel filter bank and the STFT has a Hann window and centred frames.

    Args:
        sample_rate: Samples per second.
        n_fft: Window of the STFT in samples.
        hop_length: Step between frames in samples.
        n_mels: Number of mel bands; None for all ``n_fft // 2 + 1`` linear frequencies.
        seconds: Length of the clip. Longer recordings are cut at its end.
        fill: What follows a shorter recording: ``silence``, or the recording itself, repeated until the clip is full
            (``repeat``, the way of the audio-visual baselines).

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
        """Length of the clip in samples."""
        return round(self.seconds * self.sample_rate)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (1, bins, frames) of a spectrogram."""
        bins = self.n_fft // 2 + 1 if self.n_mels is None else self.n_mels
        return 1, bins, 1 + (self.num_samples - self.n_fft % 2) // self.hop_length  # librosa pads n_fft // 2 per side

    def clip(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform (N,) cut or filled to the length of the clip, float32.

        Raises:
            ValueError: If the waveform is not one-dimensional, is empty or holds NaN or infinity.
        """
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"`waveform` should have shape (N,) with N at least 1. Found shape {waveform.shape}.")
        if not np.isfinite(waveform).all():
            raise ValueError("`waveform` should be finite. Found NaN or infinity.")
        clip = waveform[: self.num_samples]
        if self.fill == "repeat":
            repeated: np.ndarray = np.resize(clip, self.num_samples)
            return repeated
        padded: np.ndarray = np.pad(clip, (0, self.num_samples - len(clip)))
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
        import librosa  # heavy, and of use with recordings only

        magnitude = np.abs(librosa.stft(self.clip(waveform), n_fft=self.n_fft, hop_length=self.hop_length))
        if self.n_mels is not None:
            magnitude = _mel_filters(self.sample_rate, self.n_fft, self.n_mels) @ magnitude**2
        logarithm: np.ndarray = np.log(magnitude + _LOG_FLOOR, dtype=np.float32)
        return logarithm[None]


@functools.lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Mel filter bank, shape (n_mels, bins); made once, for librosa makes it anew for every recording."""
    import librosa

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


def read_wave(path: Path, sample_rate: int) -> np.ndarray:
    """Read a recording as one channel.

    Args:
        path: A wav, flac, ogg or other file that libsndfile reads.
        sample_rate: Samples per second of the result; a recording with another rate is resampled.

    Returns:
        Samples, mean over the channels, shape (N,), float32; integer formats are scaled to [−1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a recording, is empty, holds fewer samples than its header says, is longer
            than four hours or 2²⁸ samples per channel, or holds NaN or infinity; the message names it.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recording {path}.")
    _check_declared_size(path)
    try:
        with soundfile.SoundFile(path) as file:
            rate, declared = file.samplerate, file.frames
            check_length(declared, rate, sample_rate)
            # Block by block: the memory for the channels is bounded, whatever their number.
            blocks = [block.mean(axis=1) for block in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # the last two: unknown formats
        raise ValueError(f"{path} cannot be read as a recording: {error}") from error
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(waveform):
        raise ValueError(f"{path} holds no samples.")
    if len(waveform) < declared:
        raise ValueError(
            f"{path} is truncated: its header says {declared} samples per channel, it has {len(waveform)}."
        )
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} holds samples that are NaN or infinite.")
    if rate != sample_rate:
        import librosa

        waveform = librosa.resample(waveform, orig_sr=rate, target_sr=sample_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def check_length(samples: int, rate: float, sample_rate: int) -> None:
    """Raise a ValueError if a sound is too long to be read or resampled in bounded memory.

    Args:
        samples: Samples per channel.
        rate: Samples per second.
        sample_rate: Samples per second after resampling.
    """
    seconds = samples / max(rate, 1e-9)
    if seconds > MOST_SECONDS or max(samples, seconds * sample_rate) > MOST_SAMPLES:
        raise ValueError(
            f"it is too long: {samples} samples per channel, {seconds:.0f} s; at most {MOST_SAMPLES} samples and "
            f"{MOST_SECONDS} s are read"
        )


def _check_declared_size(path: Path) -> None:
    """Raise a ValueError if a wav or aiff file is shorter than its header says, which libsndfile would overlook."""
    with path.open("rb") as file:
        header = file.read(12)
        if header[8:] not in {b"WAVE", b"AIFF", b"AIFC"}:
            return  # another format, or none: libsndfile says
        order: Literal["little", "big"] = "little" if header[:4] in {b"RIFF", b"RF64"} else "big"
        declared = _audio_chunk_end(file, header, order)
    size = path.stat().st_size
    if declared is None:
        raise ValueError(f"{path} is truncated: it ends before its samples begin ({size} bytes).")
    if declared > size:
        raise ValueError(f"{path} is truncated: its header says {declared} bytes, it has {size}.")


def _audio_chunk_end(file: BinaryIO, header: bytes, order: Literal["little", "big"]) -> int | None:
    """Offset at which the samples should end, from the chunk headers; None if there is no chunk of samples."""
    long_size = 0
    while len(chunk := file.read(8)) == 8:
        name, size = chunk[:4], int.from_bytes(chunk[4:], order)
        start = file.tell()
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name in {b"data", b"SSND"}:
            return start + (long_size if header[:4] == b"RF64" and size == _UNKNOWN_SIZE else size)
        file.seek(start + size + size % 2)  # chunks begin at even offsets
    return None


def add_noise(waveform: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    r"""Mix white Gaussian noise into a waveform.

    .. math::
        x + \varepsilon\,\sqrt{\frac{\overline{x^2}}{\overline{\varepsilon^2}\;10^{\mathrm{SNR}/10}}},
        \qquad \varepsilon_i \sim \mathcal{N}(0, 1)

    The drawn noise itself is scaled, so that the ratio is exact rather than an expectation.

    Args:
        waveform: Samples, shape (N,).
        snr_db: Ratio of the waveform's power to that of the noise, in dB.
        rng: Where the noise comes from.

    Returns:
        Shape (N,), float32. A silent waveform, for which no noise has this ratio, is returned as it is.

    Raises:
        ValueError: If ``snr_db`` is not finite.

    Example:
        >>> import numpy as np
        >>> wave = np.ones(1000, dtype=np.float32)
        >>> noise = add_noise(wave, 10.0, np.random.default_rng(0)) - wave
        >>> round(float(10 * np.log10(1 / np.mean(noise**2))), 3)
        10.0
    """
    if not math.isfinite(snr_db):
        raise ValueError(f"Parameter `snr_db` should be finite. Found `snr_db = {snr_db}`.")
    signal = np.asarray(waveform, dtype=np.float64)
    noise = rng.standard_normal(signal.shape)
    power = float(np.mean(signal**2)) if signal.size else 0.0
    if power == 0:
        return signal.astype(np.float32)
    scale = math.sqrt(power / (float(np.mean(noise**2)) * 10 ** (snr_db / 10)))
    return (signal + scale * noise).astype(np.float32)
