"""Read frames of videos at a steady rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bmlr._checks import check_integer, check_non_negative, check_positive
from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent
from bmlr.data.readers._wave import MAX_SECONDS

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from PIL import Image
from bmlr.data.readers._base import MAX_PIXELS, check_min_length, reader_parameters
from bmlr.data.readers._container import TruncationCheck, check_codec, open_container
from bmlr.data.readers._images import resize_to_square

VIDEO_SUFFIXES = (".mp4", ".flv", ".avi", ".mkv", ".webm", ".mov", ".m4v")


_MAX_BYTES = 1 << 30  # of the frames that are taken from one video


def read_frames(path: Path, fps: float, size: int) -> tuple[np.ndarray, float]:
    """Frames of a video, chosen by time.

    The video, from the time of its first frame to the end of its last, is cut into intervals of 1 / ``fps`` seconds;
    of each the frame that is seen at its middle is taken. An interval whose middle the video does not reach is left
    out, unless it is the only one: then the frame at the middle of the video is taken. Variable and odd frame rates
    make no difference. Rotated videos are set upright, then frames are resized to a square, bilinearly with
    antialiasing; their aspect is not kept.

    Args:
        path: A file FFmpeg finds a video stream in; of several the first is taken.
        fps: Frames per second of the result.
        size: Height and width of the result in pixels.

    Returns:
        Frames, shape (T, size, size, 3), uint8, and the video's length in seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, has no video stream or frame, is longer than four hours,
            has frames of more than 50 million pixels or gives more than a gigabyte of frames; the message names it.
    """
    path = Path(path)
    with open_container(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        times, images, seconds = _choose_frames(container, fps, size)
        if not times:
            raise ValueError("it has no frame that can be decoded")
    return np.stack(images), seconds


@dataclasses.dataclass(frozen=True)
class VideoReader:
    """Reads the frames of a video at a steady rate, see :func:`read_frames`.

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
        """Frames (T, H, W, 3), as many as the video is long."""
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


def _choose_frames(container: InputContainer, fps: float, size: int) -> tuple[list[float], list[np.ndarray], float]:
    """Times, frames and length of the video in seconds, see :func:`read_frames`."""
    stream = container.streams.video[0]
    check_codec(stream)
    _check_pixels(stream)
    stream.thread_type = "NONE"
    watch = TruncationCheck(container, stream)
    step = 1 / float(stream.average_rate or 25)
    kept = _Sampler(fps, lambda frame: resize_to_square(_upright(frame), size), _MAX_BYTES // (3 * size * size))
    for packet in watch.packets():
        for frame in stream.decode(packet):
            _check_pixels(frame)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            kept.see(frame, None if frame.pts is None else frame.time, length)
    watch.check()
    declared = container.duration / 1e6 if container.duration and watch.declares else None
    return kept.finish(declared)


def _check_pixels(frame: av.VideoStream | av.VideoFrame) -> None:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"it has frames of {frame.width} × {frame.height} pixels, at most {MAX_PIXELS} are read")


class _Sampler:
    """Takes the frame seen at each wanted time out of a stream of frames, keeping no others.

    Args:
        fps: Frames per second to take.
        keep: Makes of a frame what is kept of it; the whole frame may be large.
        most: Number of frames above which a video is refused.
    """

    def __init__(self, fps: float, keep: Callable[[Any], Any], most: int) -> None:
        self.fps, self.keep, self.most = fps, keep, most
        self.start: float | None = None
        self.end = 0.0
        self.last: tuple[float, Any] | None = None
        self.halves: list[tuple[float, Any]] = []  # of a video shorter than half an interval
        self.times: list[float] = []
        self.frames: list[Any] = []

    def see(self, frame: Any, time: float | None, length: float) -> None:
        """The next frame, its time in seconds (None where the file has no times) and how long it is seen."""
        if self.start is None:
            self.start = 0.0 if time is None else time
        place = self.end if time is None else time - self.start
        if place + length > MAX_SECONDS:
            raise ValueError(f"it is too long: at most {MAX_SECONDS} s are read")
        if self.last is not None and place <= self.last[0]:
            return  # a frame that comes too late to be shown
        if self.last is not None:
            self._take(self.last[1], place)
        self.last = (place, frame)
        if not self.frames:
            self.halves.append((place, self.keep(frame)))
            while len(self.halves) > 1 and self.halves[1][0] <= place / 2:  # the middle cannot lie before the second
                self.halves.pop(0)
        else:
            self.halves.clear()
        self.end = place + length

    def finish(self, declared: float | None) -> tuple[list[float], list[Any], float]:
        """What was taken, and the length of the video, which the last frame cannot make longer than ``declared``."""
        if self.last is not None:
            if declared is not None and self.last[0] < declared:
                self.end = min(self.end, declared)
            self._take(self.last[1], self.end)
        if not self.frames and self.last is not None:
            middle = self.end / 2
            seen = [frame for time, frame in self.halves if time <= middle]
            self.times, self.frames = [middle], [seen[-1]]
        return self.times, self.frames, self.end

    def _take(self, frame: Any, until: float) -> None:
        """Take ``frame`` for every wanted time before ``until``."""
        kept = None
        while (wanted := (len(self.frames) + 0.5) / self.fps) < until:
            if len(self.frames) >= self.most:
                raise ValueError(f"it is too long: at most {self.most} frames of this size are taken from a video")
            kept = self.keep(frame) if kept is None else kept
            self.times.append(wanted)
            self.frames.append(kept)


def _upright(frame: av.VideoFrame) -> Image.Image:
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
