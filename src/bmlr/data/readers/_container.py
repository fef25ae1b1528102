"""Open media files with FFmpeg, and notice truncation.

FFmpeg decodes what is left of a truncated file and reports no error, so a data set would silently hold half videos.
Two checks find truncation: before decoding, the sizes that the pieces of an mp4 or flv file declare are compared with
the file's; after decoding, the time of the last packet is compared with the duration in the header.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import av
    from av.container import InputContainer


# Demuxers of plain media files. Others read playlists, by which a file could make FFmpeg open any file or address.
_FORMATS = "mov,mp4,flv,live_flv,avi,matroska,webm,mp3,aac,ogg,wav,mpeg,mpegts,asf,3gp"
_DECLARING = {"mov", "mp4", "flv", "matroska", "webm", "avi"}  # formats whose duration is written, not estimated
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"meta"}
_TOLERANCE = 0.25  # seconds by which whole files end before their header says; a hundredth of long ones


def check_installed() -> None:
    """Raise a ValueError if a package for decoding is missing."""
    missing = [name for name in ("av", "librosa", "soundfile", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{missing[0]} is not installed. Run: pip install "bmlr[media]"')


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a file with FFmpeg.

    Errors within the block become ValueErrors that name the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or no media file.
    """
    import av

    if not path.is_file():
        raise FileNotFoundError(f"There is no video or audio file {path}.")
    if (declared := _declared_size(path)) is not None and declared > (size := path.stat().st_size):
        raise ValueError(f"{path} cannot be read: it is truncated: its structure says {declared} bytes, it has {size}.")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", container_options=options, metadata_errors="replace") as container:
            yield container
    except av.FFmpegError as error:
        reason = (
            "it is damaged, truncated or no media file" if isinstance(error, (ValueError, EOFError)) else error.strerror
        )
        raise ValueError(f"{path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _declared_size(path: Path) -> int | None:
    """Size in bytes that an mp4 or flv file declares.

    It is the sum of the sizes of the file's pieces; None for other files.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head[4:] in _BOXES:
            return _end_of_boxes(file)
        return _end_of_tags(file) if head[:3] == b"FLV" else None


def _end_of_boxes(file: BinaryIO) -> int:
    """Declared end of an mp4 file's last box of a known kind."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(16)
        if head[4:8] not in _BOXES:
            return end
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # a 64-bit size follows the name
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: the box takes the rest of the file; adding it would loop for ever
            return end
        end += size


def _end_of_tags(file: BinaryIO) -> int:
    """Declared end of a flash video's last tag of a known kind."""
    file.seek(5)
    end = int.from_bytes(file.read(4), "big")
    while True:
        file.seek(end + 4)  # skips the size of the tag before
        head = file.read(11)
        if len(head) < 4 or head[0] not in {8, 9, 18}:  # audio, video, script data
            return end
        end += 4 + 11 + int.from_bytes(head[1:4], "big")


class TruncationCheck:
    """Comparison of a file's packets with the duration in its header."""

    def __init__(self, container: InputContainer, stream: av.AudioStream | av.VideoStream) -> None:
        self.container, self.stream = container, stream
        self.ends: dict[int, float] = {}

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield the stream's packets, and note the times of all streams."""
        for packet in self.container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                index = packet.stream.index
                self.ends[index] = max(end, self.ends.get(index, end))
            if packet.stream.index == self.stream.index:
                yield packet

    @property
    def declares(self) -> bool:
        """Whether the file states its duration; FFmpeg estimates those of other formats."""
        return bool(_DECLARING & set(self.container.format.name.split(",")))

    def check(self) -> None:
        """Raise a ValueError if the packets ended early.

        Call it after the last packet.
        """
        if not self.declares:
            return
        stream, container = self.stream, self.container
        if stream.duration and stream.time_base is not None:
            declared = float(stream.duration * stream.time_base)
            end = self.ends.get(stream.index, 0.0) - float((stream.start_time or 0) * stream.time_base)
        elif container.duration:
            declared = container.duration / 1e6
            end = max(self.ends.values(), default=0.0) - (container.start_time or 0) / 1e6
        else:
            return
        if end < declared - max(_TOLERANCE, declared / 100):
            raise ValueError(f"it is truncated: its header says {declared:.2f} s, it has {max(end, 0):.2f} s")


def check_codec(stream: av.AudioStream | av.VideoStream) -> None:
    """Raise a ValueError if FFmpeg has no decoder for a stream."""
    if getattr(stream, "codec_context", None) is None:
        raise ValueError("its codec is unknown")
