"""Read the audio of audio and video files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_non_negative
from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent, check_min_length, reader_parameters
from bmlr.data.readers._container import TruncationCheck, check_codec, open_container
from bmlr.data.readers._wave import check_length, read_wave
from bmlr.data.transforms._spectrogram import Spectrogram

if TYPE_CHECKING:
    from av.container import InputContainer

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".w64", ".caf")  # read by libsndfile
SILENCE = 1e-4  # −80 dB of full scale: three steps of 16 bits


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """Read the audio of a file as one channel.

    Args:
        path: A file with a suffix in ``AUDIO_SUFFIXES``, read by libsndfile, or any file in which FFmpeg finds an
            audio stream; the first of several is taken.
        sample_rate: Samples per second of the result. Files of other rates are resampled as by ``librosa.load``.

    Returns:
        Samples, mean over the channels, shape (N,), float32; full scale is [−1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, is longer than four hours or 2²⁸ samples per channel,
            has no audio stream, no samples, or samples that are NaN or infinite; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return read_wave(path, sample_rate)
    with open_container(path) as container:
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        waveform, rate = _decode_audio(container, sample_rate)
    if not len(waveform):
        raise ValueError(f"{path} holds no samples.")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} holds samples that are NaN or infinite.")
    if rate != sample_rate:
        import librosa

        waveform = librosa.resample(waveform, orig_sr=rate, target_sr=sample_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class AudioReader:
    """Reader of audio as log spectrograms, of samples clipped to [−1, 1].

    Args:
        spectrogram: Form of the spectrogram.
        dtype: Type of the stored values, which lie between −16.2 and about 8; float16 is exact to 0.008 there.
        min_seconds: Shorter audio is refused.
        silence: Audio whose samples all lie within ± this value is refused.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> reader = AudioReader(Spectrogram(22050, 512, 353, None, 3.0, "repeat"))
        >>> reader.modality.shape, reader.parameters["dtype"]
        ((1, 257, 188), 'float16')
    """

    spectrogram: Spectrogram
    dtype: Literal["float16", "float32"] = "float16"
    min_seconds: float = 0.5
    silence: float = SILENCE

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_non_negative("min_seconds", self.min_seconds)
        check_non_negative("silence", self.silence)

    @property
    def modality(self) -> Modality:
        """A spectrogram (1, bins, frames)."""
        return Modality("spectrogram", self.spectrogram.shape)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return reader_parameters(self)

    def __call__(self, path: Path) -> FileContent:
        """Read the audio of a file."""
        waveform = read_audio(path, self.spectrogram.sample_rate)
        seconds = len(waveform) / self.spectrogram.sample_rate
        check_min_length(path, seconds, self.min_seconds)
        loudest = float(np.abs(waveform).max())
        if loudest <= self.silence:
            raise ValueError(f"{path} is silent: no sample is beyond ± {self.silence:g} of full scale.")
        values = self.spectrogram(np.clip(waveform, -1, 1)).astype(self.dtype)
        return FileContent(values, seconds)


def _decode_audio(container: InputContainer, sample_rate: int) -> tuple[np.ndarray, int]:
    """Decode the first audio stream: mono samples and their rate."""
    import av

    stream = container.streams.audio[0]
    check_codec(stream)
    to_float = av.AudioResampler(format="fltp")  # changes the sample format; layout and rate stay
    truncation = TruncationCheck(container, stream)
    blocks: list[np.ndarray] = []
    samples = 0
    for packet in truncation.packets():
        for frame in stream.decode(packet):
            samples += frame.samples
            check_length(samples, stream.rate, sample_rate)
            blocks += [plain.to_ndarray().mean(axis=0) for plain in to_float.resample(frame)]
    if blocks:
        blocks += [plain.to_ndarray().mean(axis=0) for plain in to_float.resample(None)]
    truncation.check()
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), stream.rate
