"""Read the audio of audio and video files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_non_negative
from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent, FileReader, Interval, check_min_length
from bmlr.data.readers._container import MediaStream, open_stream
from bmlr.data.readers._files import blame_bytes, check_file
from bmlr.data.readers._wave import decode_sndfile, is_sndfile
from bmlr.data.readers._window import SampleWindow
from bmlr.data.transforms._spectrogram import Spectrogram

SILENCE = 1e-4  # −80 dB of full scale: three steps of 16 bits

_MAX_JITTER = 0.1  # seconds by which a block may be late without a gap being meant


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """Read all audio of a file as one channel.

    See :func:`read_audio_interval`.

    Returns:
        Samples, mean over the channels, shape (N,), float32; full scale is [−1, 1].
    """
    return read_audio_interval(path, sample_rate, Interval())[0]


def read_audio_interval(path: Path, sample_rate: int, interval: Interval) -> tuple[np.ndarray, float]:
    """Read an interval of the audio of a file as one channel.

    The decoder is chosen by the file's content, whatever its name: libsndfile for wav, flac, ogg, aiff, au, caf and
    w64, FFmpeg for all else. Times are those of the file: where the sound of a video begins after its picture, or
    pauses, there is silence.

    Args:
        path: An audio file, or a video; of several audio streams the default one is read.
        sample_rate: Samples per second of the result. Files of other rates are resampled as by ``librosa.load``.
        interval: Interval to read.

    Returns:
        Samples of the interval, mean over the channels, shape (N,), float32, full scale being [−1, 1]; and the
        duration of the whole audio in seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, has no audio stream or no samples, holds NaN or infinity,
            or more than four hours or 2²⁸ samples per channel are asked for; the message names it.
        OSError: If the file cannot be read now.
    """
    path = Path(path)
    head = check_file(path, "audio file")
    start, stop = interval
    window = None
    if is_sndfile(head):
        with blame_bytes(path, "audio"):
            window = decode_sndfile(path, head, sample_rate, start, stop)
    if window is None:
        with open_stream(path, "audio") as source:
            window = _decode_audio(source, sample_rate, start, stop)
    if not window.position:
        raise ValueError(f"{path} holds no samples.")
    seconds = window.position / window.rate
    if start >= seconds:
        raise ValueError(f"{path} lasts {seconds:.2f} s, its interval begins at {start:g} s.")
    if not all(np.isfinite(block).all() for block in window.blocks):
        raise ValueError(f"{path} holds samples that are NaN or infinite.")
    waveform = window.waveform()
    if not len(waveform):
        raise ValueError(f"{path} holds no samples in the interval from {start:g} s.")
    return waveform, seconds


@dataclasses.dataclass(frozen=True)
class AudioReader(FileReader):
    """Reader of audio as log spectrograms, of samples clipped to [−1, 1].

    Args:
        spectrogram: Form of the spectrogram, and the seconds that are read.
        dtype: Type of the stored values, which lie between −16.2 and about 8; float16 is exact to 0.008 there.
        min_seconds: Shorter audio is refused.
        silence: Audio whose samples all lie within ± this value is refused; None takes silent audio too.

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
    silence: float | None = SILENCE

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_non_negative("min_seconds", self.min_seconds)
        if self.silence is not None:
            check_non_negative("silence", self.silence)

    @property
    def modality(self) -> Modality:
        """A spectrogram (1, bins, frames)."""
        return Modality("spectrogram", self.spectrogram.shape)

    @property
    def window(self) -> float | None:
        """Length in seconds read of a file, or None for all."""
        return self.spectrogram.seconds

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read the beginning of a file or of an interval."""
        interval = interval or Interval()
        window = interval.beginning(self.spectrogram.seconds)
        waveform, seconds = read_audio_interval(path, self.spectrogram.sample_rate, window)
        available = interval.length_in(seconds)
        check_min_length(path, available, self.min_seconds)
        if self.silence is not None and np.abs(waveform).max() <= self.silence:
            raise ValueError(
                f"{path} is silent: no sample that is read is beyond ± {self.silence:g} of full scale. Option "
                "--allow-silent takes it."
            )
        values = self.spectrogram(np.clip(waveform, -1, 1)).astype(self.dtype)
        return FileContent(values, available)


def _decode_audio(source: MediaStream, sample_rate: int, start: float, stop: float | None) -> SampleWindow:
    """Decode the audio stream of a container: mean over the channels."""
    import av

    stream = source.stream
    window = SampleWindow(stream.rate, sample_rate, start, stop)
    to_float = av.AudioResampler(format="fltp", rate=stream.rate)  # the layout stays

    def add(frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            block = frame.to_ndarray().mean(axis=0)
            begin = window.position if frame.time is None else round((frame.time - source.origin) * stream.rate)
            late = begin - window.position
            if late > (_MAX_JITTER * stream.rate if window.position else 0):
                window.add_silence(late)
            window.add(block)

    for packet in source.packets(start):
        if not window.complete:
            for frame in stream.decode(packet):
                add(to_float.resample(frame))
    if not window.complete and window.position:
        add(to_float.resample(None))
    source.check_truncation()
    if window.complete:
        window.position = max(window.position, round(source.duration * stream.rate))
    return window
