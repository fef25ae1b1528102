"""Read frames of videos at a steady rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bmlr._checks import check_integer, check_non_negative, check_positive
from bmlr.data._base import Modality
from bmlr.data.readers._base import MAX_PIXELS, FileContent, check_min_length, reader_parameters
from bmlr.data.readers._container import TruncationCheck, check_codec, open_container
from bmlr.data.readers._images import resize_to_square
from bmlr.data.readers._wave import MAX_SECONDS

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from PIL import Image

VIDEO_SUFFIXES = (".mp4", ".flv", ".avi", ".mkv", ".webm", ".mov", ".m4v")

_MAX_BYTES = 1 << 30  # of the frames kept of one video


def read_frames(path: Path, fps: float, size: int) -> tuple[np.ndarray, float]:
    """Sample frames of a video at a steady rate.

    The video, from the time of its first frame to the end of its last, is cut into intervals of 1 / ``fps`` seconds.
    The frame shown at the middle of each interval is kept. An interval whose middle lies beyond the end is left out,
    unless it is the only one: then the frame at the middle of the video is kept. Variable and odd frame rates make no
    difference. Rotated videos are turned upright, then frames are resized to a square, bilinearly with antialiasing;
    their aspect ratio is not kept.

    Args:
        path: A file in which FFmpeg finds a video stream; the first of several is taken.
        fps: Frames per second of the result.
        size: Height and width of the result in pixels.

    Returns:
        Frames, shape (T, size, size, 3), uint8, and the video's duration in seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, has no video stream or frame, is longer than four hours,
            has frames of more than 50 million pixels or gives more than a gigabyte of frames; the message names it.
    """
    path = Path(path)
    with open_container(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        frames, seconds = _sample_frames(container, fps, size)
        if not frames:
            raise ValueError("it has no frame that can be decoded")
    return np.stack(frames), seconds


@dataclasses.dataclass(frozen=True)
class VideoReader:
    """Reader of video frames at a steady rate; see :func:`read_frames`.

    Args:
        size: Height and width in pixels.
        fps: Frames per second.
        min_seconds: Shorter videos are refused.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    size: int = 224
    fps: float = 1.0
    min_seconds: float = 0.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_positive("fps", self.fps)
        check_non_negative("min_seconds", self.min_seconds)

    @property
    def modality(self) -> Modality:
        """Frames (T, H, W, 3), T by the duration."""
        return Modality("frames", (-1, self.size, self.size, 3))

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return reader_parameters(self)

    def __call__(self, path: Path) -> FileContent:
        """Read a video."""
        frames, seconds = read_frames(path, self.fps, self.size)
        check_min_length(path, seconds, self.min_seconds)
        return FileContent(frames, seconds)


def _sample_frames(container: InputContainer, fps: float, size: int) -> tuple[list[np.ndarray], float]:
    """Frames and duration in seconds; see :func:`read_frames`."""
    stream = container.streams.video[0]
    check_codec(stream)
    _check_pixels(stream)
    stream.thread_type = "NONE"
    truncation = TruncationCheck(container, stream)
    frame_seconds = 1 / float(stream.average_rate or 25)
    max_frames = _MAX_BYTES // (3 * size * size)
    sampler = _Sampler(fps, lambda frame: resize_to_square(_upright(frame), size), max_frames)
    for packet in truncation.packets():
        for frame in stream.decode(packet):
            _check_pixels(frame)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else frame_seconds
            sampler.add(frame, None if frame.pts is None else frame.time, length)
    truncation.check()
    declared = container.duration / 1e6 if container.duration and truncation.declares else None
    return sampler.finish(declared)


def _check_pixels(frame: av.VideoStream | av.VideoFrame) -> None:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"it has frames of {frame.width} × {frame.height} pixels, at most {MAX_PIXELS} are read")


class _Sampler:
    """Selection of frames by time from a stream, in bounded memory.

    How long a frame is shown is known only when the next one arrives. So the newest frame is held back, and converted
    for every sampling time before the next. Frames are converted, which resizes them, before they are kept: a list of
    whole frames would take gigabytes.

    Args:
        fps: Frames per second to keep.
        convert: Converts a frame to what is kept of it.
        max_frames: Number of kept frames above which a video is refused.
    """

    def __init__(self, fps: float, convert: Callable[[Any], Any], max_frames: int) -> None:
        self.fps, self.convert, self.max_frames = fps, convert, max_frames
        self.start: float | None = None
        self.end = 0.0
        self.newest: tuple[float, Any] | None = None
        self.middles: list[tuple[float, Any]] = []  # candidates for the middle of a video shorter than half an interval
        self.frames: list[Any] = []

    def add(self, frame: Any, time: float | None, length: float) -> None:
        """Add the next frame, its time and its length in seconds.

        The time is None in files without times.
        """
        if self.start is None:
            self.start = 0.0 if time is None else time
        shown = self.end if time is None else time - self.start
        if shown + length > MAX_SECONDS:  # two frames days apart would else be kept a hundred thousand times
            raise ValueError(f"it is too long: at most {MAX_SECONDS} s are read")
        if self.newest is not None and shown <= self.newest[0]:
            return  # out of order or a duplicate: it would move time backwards
        if self.newest is not None:
            self._keep(self.newest[1], shown)
        self.newest = (shown, frame)
        if not self.frames:
            self.middles.append((shown, self.convert(frame)))
            # The middle is at least at `shown / 2`: what is followed by a frame before that cannot be shown there.
            while len(self.middles) > 1 and self.middles[1][0] <= shown / 2:
                self.middles.pop(0)
        else:
            self.middles.clear()
        self.end = shown + length

    def finish(self, declared: float | None) -> tuple[list[Any], float]:
        """Return kept frames and the duration.

        The duration is at most ``declared`` seconds, where the header states them.
        """
        if self.newest is not None:
            if declared is not None and self.newest[0] < declared:
                self.end = min(self.end, declared)  # the last frame's length is a guess in some formats
            self._keep(self.newest[1], self.end)
        if not self.frames:
            self.frames = [frame for time, frame in self.middles if time <= self.end / 2][-1:]
        return self.frames, self.end

    def _keep(self, frame: Any, until: float) -> None:
        """Keep a frame for every sampling time before ``until``."""
        converted = None
        while (len(self.frames) + 0.5) / self.fps < until:
            if len(self.frames) >= self.max_frames:
                raise ValueError(f"it is too long: at most {self.max_frames} frames of this size are kept of a video")
            converted = self.convert(frame) if converted is None else converted
            self.frames.append(converted)


def _upright(frame: av.VideoFrame) -> Image.Image:
    """Image of a frame, turned as the file's metadata asks for."""
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
