"""Open media files with FFmpeg, choose a stream, and notice truncation.

FFmpeg decodes what is left of a truncated file and reports no error, so a data set would silently hold half videos.
Two checks find truncation: before decoding, the sizes that the pieces of an mp4 or flv file declare are compared with
the file's; after decoding, the time of the last packet is compared with the duration in the header.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from bmlr.data.readers._files import blame_bytes, check_file

if TYPE_CHECKING:
    from av.container import InputContainer


# Demuxers of plain media files. Others read playlists, by which a file could make FFmpeg open any file or address.
_FORMATS = ",".join((
    "mov,mp4,flv,live_flv,avi,matroska,webm,mpeg,mpegts,asf,3gp,ogg,gif,apng",
    "mp3,aac,wav,flac,aiff,au,caf,w64,ac3,eac3,amr,wv,tta",
))  # fmt: skip
_DECLARING = {"mov", "mp4", "flv", "matroska", "webm", "avi"}  # formats whose duration is written, not estimated
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}  # formats whose index and times are exact
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"meta"}
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}
_TOLERANCE = 0.25  # seconds by which whole files end before their header says; a hundredth of long ones
_PREROLL = 2.0  # seconds decoded before an interval: what a decoder needs to find its state
_STALLED = (60.0, 60.0)  # seconds that FFmpeg may take to open a file and to read a packet


def check_installed() -> None:
    """Raise a ValueError if a package for decoding is missing."""
    missing = [name for name in ("av", "librosa", "soundfile", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{missing[0]} is not installed. Run: pip install "bmlr[media]"')


@contextlib.contextmanager
def open_stream(path: Path, kind: Literal["audio", "video"]) -> Iterator[MediaStream]:
    """Open the audio or video stream of a file with FFmpeg.

    Errors within the block become ValueErrors that name the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or no media file, or has no such stream.
        OSError: If the file cannot be read now.
    """
    import av

    head = check_file(path, "video or audio file")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    with blame_bytes(path, "", _describe_error):
        if (declared := _declared_size(path)) is not None and declared > (size := path.stat().st_size):
            raise ValueError(f"it is truncated: its structure says {declared} bytes, it has {size}")
        with av.open(
            f"file:{path}", container_options=options, metadata_errors="replace", timeout=_STALLED
        ) as container:
            declares = bool(_DECLARING & set(container.format.name.split(","))) and not _is_unfinished_avi(head)
            yield MediaStream(container, kind, declares=declares)


def _describe_error(error: Exception) -> str:
    import av

    if isinstance(error, av.FFmpegError):
        damaged = isinstance(error, (ValueError, EOFError))
        return "it is damaged, truncated or no media file" if damaged else str(error.strerror)
    return str(error)


def _is_unfinished_avi(head: bytes) -> bool:
    """Whether an avi file was written to a pipe.

    The numbers in its header are made up then.
    """
    return head[:4] == b"RIFF" and head[8:12] == b"AVI " and head[4:8] in {bytes(4), b"\xff" * 4}


def _declared_size(path: Path) -> int | None:
    """Declared size of an mp4 or flv file in bytes.

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


class MediaStream:
    """Audio or video stream of a container, chosen as players do.

    Cover pictures are passed over. Of the others it is the first that is marked as the default, else
    the first. Times are counted from the beginning of the earliest audio or video stream, so that sound and picture of
    a file have one clock.

    Args:
        container: The container.
        kind: Kind of the stream.
        declares: Whether the header states the duration; FFmpeg estimates that of other files.

    Raises:
        ValueError: If there is no such stream, or none with a decoder.
    """

    def __init__(self, container: InputContainer, kind: Literal["audio", "video"], *, declares: bool) -> None:
        self.container, self.declares = container, declares
        candidates = _real_streams(container, kind)
        if not candidates:
            cover = ", only a cover picture" if kind == "video" and container.streams.video else ""
            raise ValueError(f"it has no {kind} stream{cover}")
        if not (decodable := [stream for stream in candidates if getattr(stream, "codec_context", None) is not None]):
            raise ValueError("its codec is unknown")
        moving = [stream for stream in decodable if stream.codec_context.name not in _PICTURE_CODECS]
        self.stream: Any = _preferred(moving or decodable)  # some programs do not mark a cover as one
        clocked = [*_real_streams(container, "audio"), *_real_streams(container, "video")]
        starts = [float(stream.start_time * stream.time_base) for stream in clocked if stream.start_time is not None]
        self.origin = min(starts, default=0.0)
        self.ends: dict[int, float] = {}
        self._last_lengths: dict[int, float] = {}

    @property
    def duration(self) -> float:
        """Seconds from the origin to the newest packet's end."""
        return max(self.ends.get(self.stream.index, self.origin) - self.origin, 0.0)

    def packets(self, start: float = 0.0) -> Iterator[Any]:
        """Yield the stream's packets, and note the times of all streams.

        Args:
            start: Seconds from the origin that are needed; packets well before may be left out.
        """
        if start > 2 * _PREROLL and _SEEKABLE & set(self.container.format.name.split(",")):
            self.container.seek(int((self.origin + start - _PREROLL) * 1e6))
        for packet in self.container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                index = packet.stream.index
                # Flash videos state no lengths of packets: the last image is seen about as long as the one before.
                self._last_lengths[index] = 0.0 if packet.duration else max(end - self.ends.get(index, end), 0.0)
                self.ends[index] = max(end, self.ends.get(index, end))
            if packet.stream.index == self.stream.index:
                yield packet

    @property
    def declared_duration(self) -> float | None:
        """Declared duration in seconds, or None."""
        duration = self.container.duration
        return duration / 1e6 if duration and self.declares else None

    def check_truncation(self) -> None:
        """Raise a ValueError if the packets ended early.

        Call it after the last packet.
        """
        if not self.declares:
            return
        stream, container = self.stream, self.container
        if stream.duration and stream.time_base is not None:
            declared = float(stream.duration * stream.time_base)
            end = self.ends.get(stream.index, 0.0) - float((stream.start_time or 0) * stream.time_base)
            last = self._last_lengths.get(stream.index, 0.0)
        elif container.duration:
            declared = container.duration / 1e6
            end = max(self.ends.values(), default=0.0) - (container.start_time or 0) / 1e6
            last = max(self._last_lengths.values(), default=0.0)
        else:
            return
        if end < declared - max(_TOLERANCE, declared / 100, 1.01 * last):
            raise ValueError(f"it is truncated: its header says {declared:.2f} s, it has {max(end, 0):.2f} s")


def _real_streams(container: InputContainer, kind: Literal["audio", "video"]) -> list[Any]:
    """Streams of a kind without cover pictures."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in getattr(container.streams, kind) if not stream.disposition & pictures]


def _preferred(streams: list[Any]) -> Any:
    from av.stream import Disposition

    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
