"""Decode audio files with libsndfile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from bmlr.data.readers._window import SampleWindow, check_length

_BLOCK = 1 << 16  # samples per channel read at a time
_MAX_CHUNKS = 10_000  # looked at before the samples; bounds the time that a hostile file takes
_UNKNOWN_SIZE = b"\xff\xff\xff\xff"
_UNKNOWN_LENGTH = 1 << 60  # samples; libsndfile's number for a FLAC stream of unknown length is above
_WAVES = {b"RIFF", b"RIFX", b"RF64", b"BW64"}
_MAGIC = (b"fLaC", b"OggS", b".snd", b"dns.", b"caff", b"riff")


def is_sndfile(head: bytes) -> bool:
    """Whether a file begins like formats of libsndfile."""
    container = head[:4] in _WAVES or (head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"})
    return container or head[:4] in _MAGIC


def decode_sndfile(path: Path, head: bytes, sample_rate: int, start: float, stop: float | None) -> SampleWindow | None:
    """Decode a file with libsndfile.

    Args:
        path: The file.
        head: Its first bytes.
        sample_rate: Samples per second of the result.
        start: Start of the window in seconds.
        stop: End of the window in seconds; None for that of the file.

    Returns:
        The samples, mean over the channels; None if libsndfile cannot read such a file, and FFmpeg should be asked.

    Raises:
        ValueError: If the file is damaged, truncated or too long.
    """
    import soundfile

    patches = _check_declared_size(path, head)
    with _PatchedFile(path, patches) as source:
        try:
            file = soundfile.SoundFile(source)
        except (soundfile.LibsndfileError, TypeError, ValueError):  # the last two: an unknown subtype
            return None
        with file:
            declared = file.frames
            # Of MP3 within wav libsndfile guesses the length; in a stream of unknown length it fails to seek.
            if file.subtype.startswith("MPEG") or declared > _UNKNOWN_LENGTH:
                return None
            window = SampleWindow(file.samplerate, sample_rate, start, stop)
            if stop is None:
                check_length(declared, file.samplerate, sample_rate)
            # Block by block: a file of a thousand channels would take a thousand times the memory of their mean.
            while not window.exhausted and len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                window.add(block.mean(axis=1))
    if window.position < declared and not window.exhausted:
        raise ValueError(f"it is truncated: its header says {declared} samples per channel, it has {window.position}")
    return window


class _PatchedFile(io.FileIO):
    """A file with a few bytes replaced.

    Args:
        path: The file.
        patches: Replaced bytes, by their position.
    """

    def __init__(self, path: Path, patches: dict[int, bytes]) -> None:
        super().__init__(path)
        self.patches = patches

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:  # before the beginning, by a size that is made up; libsndfile prints what is raised here
            return self.tell()

    def readinto(self, buffer: Any) -> int | None:
        start = self.tell()
        count = super().readinto(buffer)
        end = start + (count or 0)
        for position, patch in self.patches.items():
            first, last = max(start, position), min(end, position + len(patch))
            if first < last:
                memoryview(buffer).cast("B")[first - start : last - start] = patch[first - position : last - position]
        return count


def _check_declared_size(path: Path, head: bytes) -> dict[int, bytes]:
    """Compare a header's declared size with the file's.

    A program that writes to a pipe cannot fill in the sizes, and leaves 0, −1 or a number near 2 or 4 GB. The samples
    then go on to the end of the file.

    Returns:
        Bytes to replace, by position, for libsndfile to read such a file to its end.

    Raises:
        ValueError: If the file is shorter than declared; libsndfile would read the rest of it without a complaint.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        samples = _find_samples(file, head)
    if samples is None:
        return {}  # of a format without such a size, or damaged: the decoder says how
    declared, available = samples.size, size - samples.start
    if _is_placeholder(declared) or (declared == 0 and available > 0):
        magic = {b"RF64": b"RIFF", b"BW64": b"RIFF"}.get(head[:4], head[:4])
        if head[:4] == b"caff":
            return {samples.position: available.to_bytes(8, "big")}
        return {} if magic == b"FORM" else {0: magic, samples.position: _UNKNOWN_SIZE}
    if declared > available:
        raise ValueError(f"it is truncated: its header says {samples.start + declared} bytes, it has {size}")
    return {0: b"RF64"} if head[:4] == b"BW64" else {}


def _is_placeholder(size: int) -> bool:
    """Whether a size stands for an unknown one.

    Such a size nearly fills 31, 32, 63 or 64 bits.
    """
    return any(limit - 0x10000 < size <= limit for limit in (1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1))


class _Samples(NamedTuple):
    """Declared size of a file's samples, in bytes.

    With the position of that number and the beginning of the samples.
    """

    position: int
    size: int
    start: int


def _find_samples(file: BinaryIO, head: bytes) -> _Samples | None:
    """Find the declared size of the samples, if there is one."""
    magic = head[:4]
    order: Literal["little", "big"] = "little" if magic in {b"RIFF", b"RF64", b"BW64", b"dns."} else "big"
    if magic in {b".snd", b"dns."}:
        return _Samples(8, int.from_bytes(head[8:12], order), int.from_bytes(head[4:8], order))
    if magic not in {*_WAVES, b"FORM", b"caff"}:
        return None
    width, position = (8, 8) if magic == b"caff" else (4, 12)
    long_size: int | None = None
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        if len(chunk := file.read(4 + width)) < 4 + width:
            return None
        name, size, start = chunk[:4], int.from_bytes(chunk[4:], order), position + 4 + width
        if name == b"ds64":  # sizes above 4 GB
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name in {b"data", b"SSND"}:
            long = long_size is not None and chunk[4:] == _UNKNOWN_SIZE
            return _Samples(position + 4, long_size if long and long_size is not None else size, start)
        position = start + size + (0 if magic == b"caff" else size % 2)  # other chunks begin at even offsets
    return None
