"""Readers of media from the options of a preparation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from bmlr.data.readers._audio import SILENCE, AudioReader
from bmlr.data.readers._base import FileReader, is_longer
from bmlr.data.readers._video import VideoReader
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import StoredSample
from bmlr.data.store._store import open_store
from bmlr.data.transforms._spectrogram import Spectrogram

_MIN_SECONDS = 0.5


def audio_reader(seconds: float, dtype: str = "float16") -> AudioReader:
    """Reader of the audio-visual baselines' spectrograms, 257 bins.

    One channel at 22,050 Hz, repeated until ``seconds`` are full or cut, limited to [−1, 1], a window of 512 samples
    with a step of 353, log(|STFT| + 1e-7): 188 frames for 3 seconds.
    """
    spectrogram = Spectrogram(22050, n_fft=512, hop_length=353, n_mels=None, seconds=seconds, fill="repeat")
    return AudioReader(spectrogram, "float32" if dtype == "float32" else "float16")


def make_audio_reader(options: PrepareOptions, seconds: float) -> AudioReader:
    """Reader of the first ``seconds`` of sound."""
    min_seconds = min(_MIN_SECONDS, seconds) if options.min_seconds is None else options.min_seconds
    silence = None if options.allow_silent else SILENCE
    return dataclasses.replace(audio_reader(seconds, options.dtype), min_seconds=min_seconds, silence=silence)


def make_video_reader(options: PrepareOptions, seconds: float | None) -> VideoReader:
    """Reader of the first ``seconds`` of frames, or of all."""
    min_seconds = options.min_seconds or 0.0
    return VideoReader(options.size, options.fps, min_seconds, seconds, options.frame_rate, options.max_pixels)


def note_lengths(result: PrepareResult, readers: Mapping[str, FileReader]) -> PrepareResult:
    """Add notes on clips longer or shorter than the window."""
    samples = open_store(result.folder).samples
    notes = []
    for window in sorted({reader.window for reader in readers.values() if reader.window is not None}):
        names = [name for name, reader in readers.items() if reader.window == window]
        lengths = [_clip_seconds(sample, names) for sample in samples]
        if longer := [seconds for seconds in lengths if is_longer(seconds, window)]:
            notes.append(
                f"{len(longer)} of {len(samples)} clips are longer than {window:g} s, up to {max(longer):.1f} s. Their "
                f"first {window:g} s are used, of {' and '.join(names)}; --seconds takes more."
            )
        sounds = [name for name in names if readers[name].modality.kind == "spectrogram"]
        lengths = [_clip_seconds(sample, sounds) for sample in samples]
        if shorter := [seconds for seconds in lengths if seconds > 0 and is_longer(window, seconds)]:
            notes.append(
                f"{len(shorter)} of {len(samples)} sounds are shorter than {window:g} s, down to {min(shorter):.1f} s. "
                "They are repeated."
            )
    return dataclasses.replace(result, notes=(*result.notes, *notes))


def _clip_seconds(sample: StoredSample, names: Collection[str]) -> float:
    """Duration of the longest of a sample's files; 0 without one."""
    return max((sample.files[name]["seconds"] for name in names if name in sample.files), default=0.0)
