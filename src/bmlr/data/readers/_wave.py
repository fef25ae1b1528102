"""Read audio files with libsndfile."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

MAX_SECONDS = 4 * 3600  # of audio or video; a file of a megabyte can hold days of silence
MAX_SAMPLES = 1 << 28  # per channel, before and after resampling: a gigabyte in memory

_BLOCK = 1 << 16  # samples per channel read at a time
_UNKNOWN_SIZE = 0xFFFFFFFF


def read_wave(path: Path, sample_rate: int) -> np.ndarray:
    """Read an audio file with libsndfile as one channel.

    Args:
        path: A wav, flac, ogg or other file that libsndfile reads.
        sample_rate: Samples per second of the result; files of other rates are resampled.

    Returns:
        Samples, mean over the channels, shape (N,), float32; integer formats are scaled to [−1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no audio file, is empty, holds fewer samples than its header says, is longer
            than four hours or 2²⁸ samples per channel, or holds NaN or infinity; the message names it.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no audio file {path}.")
    _check_declared_size(path)
    try:
        with soundfile.SoundFile(path) as file:
            rate, declared = file.samplerate, file.frames
            check_length(declared, rate, sample_rate)
            # Block by block: a file of a thousand channels would take a thousand times the memory of their mean.
            blocks = [block.mean(axis=1) for block in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
    except (
        soundfile.SoundFileError,
        TypeError,
        ValueError,
    ) as error:  # the last two: unknown formats
        raise ValueError(f"{path} cannot be read as audio: {error}") from error
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
    """Raise a ValueError if audio would take too much memory.

    Args:
        samples: Samples per channel.
        rate: Samples per second.
        sample_rate: Samples per second after resampling.
    """
    seconds = samples / max(rate, 1e-9)
    if seconds > MAX_SECONDS or max(samples, seconds * sample_rate) > MAX_SAMPLES:
        raise ValueError(
            f"it is too long: {samples} samples per channel, {seconds:.0f} s; at most {MAX_SAMPLES} samples and "
            f"{MAX_SECONDS} s are read"
        )


def _check_declared_size(path: Path) -> None:
    """Raise a ValueError if an audio file is shorter than declared.

    Libsndfile reads the rest of such a file without a complaint.
    """
    with path.open("rb") as file:
        header = file.read(12)
        if header[8:] not in {b"WAVE", b"AIFF", b"AIFC"}:
            return  # another format, or no audio: libsndfile raises
        order: Literal["little", "big"] = "little" if header[:4] in {b"RIFF", b"RF64"} else "big"
        declared = _audio_chunk_end(file, header, order)
    size = path.stat().st_size
    if declared is None:
        raise ValueError(f"{path} is truncated: it ends before its samples begin ({size} bytes).")
    if declared > size:
        raise ValueError(f"{path} is truncated: its header says {declared} bytes, it has {size}.")


def _audio_chunk_end(file: BinaryIO, header: bytes, order: Literal["little", "big"]) -> int | None:
    """Declared end of the chunk of samples in bytes.

    None if there is no such chunk.
    """
    long_size = 0
    while len(chunk := file.read(8)) == 8:
        name, size = chunk[:4], int.from_bytes(chunk[4:], order)
        start = file.tell()
        if name == b"ds64":  # sizes above 4 GB
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name in {b"data", b"SSND"}:
            return start + (long_size if header[:4] == b"RF64" and size == _UNKNOWN_SIZE else size)
        file.seek(start + size + size % 2)  # chunks begin at even offsets
    return None
