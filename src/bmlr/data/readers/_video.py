"""Frames of videos and of folders of images, at a steady rate."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import Modality
from bmlr.data.readers._base import (
    MAX_PIXELS,
    FileContent,
    FrameReader,
    Interval,
    check_min_length,
    check_pixels,
)
from bmlr.data.readers._container import open_stream
from bmlr.data.readers._images import read_rgb_image, resize_to_square
from bmlr.data.readers._window import MAX_SECONDS
from bmlr.data.readers.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import av
    from PIL import Image

_MAX_BYTES = 1 << 30  # of the frames kept of one video
_LESS = "Less is read with smaller --seconds, --fps or --size"


def read_frames(
    path: Path, fps: float, size: int, interval: Interval | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, float]:
    """Sample frames of a video at a steady rate.

    The interval, or the whole video from its beginning to the end of its last frame, is cut into pieces of 1 / ``fps``
    seconds. The frame shown at the middle of each piece is kept. A piece whose middle lies beyond the end is left out,
    unless it is the only one: then the frame at the middle of the interval is kept. Variable and odd frame rates make
    no difference. Times are those of the file: where the picture begins after the sound, its first frame is shown until
    then. Turned and mirrored videos are shown as players show them; then frames are resized to a square, bilinearly
    with antialiasing; their aspect ratio is not kept.

    Args:
        path: A file in which FFmpeg finds a video stream that is more than a cover picture; of several the default one
            is read.
        fps: Frames per second of the result.
        size: Height and width of the result in pixels.
        interval: Interval to read; None reads all.
        max_pixels: Videos with frames of more pixels are refused.

    Returns:
        Frames, shape (T, size, size, 3), uint8, and the duration of the whole video in seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, has no video stream or frame, has too large frames, or
            more than four hours or a gigabyte of frames are asked for; the message names it.
        OSError: If the file cannot be read now.
    """
    path, interval = Path(path), interval or Interval()
    length = None if interval.stop is None else interval.stop - interval.start
    sampler = _Sampler(fps, _Converter(size), _max_frames(size), length)
    seconds = _sample_frames(path, sampler, interval.start, max_pixels)
    if not sampler.frames:  # shorter than half a piece: only its end tells where its middle is
        sampler = _Sampler(1 / sampler.length, sampler.convert, 1, length)
        seconds = _sample_frames(path, sampler, interval.start, max_pixels)
    return np.stack(sampler.frames), seconds


def read_frame_folder(
    folder: Path, fps: float, size: int, interval: Interval | None, frame_rate: float, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, float]:
    """Sample frames from a folder of images at a steady rate.

    They are sampled as :func:`read_frames` does from a video.
    Images are ordered by the numbers in their names, padded with zeros or not.

    Args:
        folder: The folder; files with other suffixes and folders in it are not read.
        fps: Frames per second of the result.
        size: Height and width of the result in pixels.
        interval: Interval to read; None reads all.
        frame_rate: Images per second.
        max_pixels: Images of more pixels are refused.

    Returns:
        Frames, shape (T, size, size, 3), uint8, and the duration of all images in seconds.

    Raises:
        ValueError: If the folder holds no images, or one of them cannot be read.
        OSError: If the folder cannot be read now.
    """
    images = list_images(folder)
    if not images:
        raise ValueError(f"{folder} should hold images, the frames of a video. It holds none.")
    steady = SteadyFrames(folder, len(images), frame_rate, interval or Interval(), fps)
    if steady.count > (limit := _max_frames(size)):
        raise ValueError(f"{folder} holds too many images: at most {limit} frames of this size are kept. {_LESS}.")
    frames = np.stack([read_rgb_image(images[index], size, max_pixels) for index in steady.indices()])
    return frames, steady.seconds


class SteadyFrames:
    """Frames at a steady rate of frames at another.

    Args:
        path: Where they are, for the message.
        total: Number of given frames.
        frame_rate: Given frames per second.
        interval: Interval to read.
        fps: Frames per second of the result.

    Attributes:
        seconds: Duration of the given frames.
        count: Number of frames of the result; 0 stands for one of a shorter interval.

    Raises:
        ValueError: If the interval begins behind the last frame.
    """

    def __init__(self, path: Path, total: int, frame_rate: float, interval: Interval, fps: float) -> None:
        self.total, self.frame_rate, self.fps, self.start = total, frame_rate, fps, interval.start
        self.seconds = total / frame_rate
        self._length = interval.length_in(self.seconds)
        if self._length <= 0:
            raise ValueError(
                f"{path} should last beyond {self.start:g} s, the start of its interval. It lasts {self.seconds:.2f} s."
            )
        self.count = math.ceil(self._length * fps - 0.5 - 1e-9)

    def indices(self) -> list[int]:
        """Index of the given frame at the middle of each frame of the result."""
        middles = [(k + 0.5) / self.fps for k in range(self.count)] or [self._length / 2]
        return [min(int((self.start + middle) * self.frame_rate + 1e-9), self.total - 1) for middle in middles]


def list_images(folder: Path) -> list[Path]:
    """Images of a folder, ordered by the numbers in their names."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    return sorted(images, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key: frame2 comes before frame10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"([0-9]+)", path.name)]


@dataclasses.dataclass(frozen=True)
class VideoReader(FrameReader):
    """Reader of video frames at a steady rate; see :func:`read_frames`.

    A folder of images is read as the frames of a video; see :func:`read_frame_folder`.

    Args:
        size: Height and width in pixels.
        fps: Frames per second.
        min_seconds: Shorter videos are refused.
        seconds: Length that is read; None reads all.
        frame_rate: Images per second in folders of images; None takes ``fps``, so that all are read.
        max_pixels: Videos and images of more pixels are refused.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    max_pixels: int = MAX_PIXELS

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_pixels", self.max_pixels, 1)

    @property
    def modality(self) -> Modality:
        """Frames (T, H, W, 3), T by the duration."""
        return Modality("frames", (-1, self.size, self.size, 3))

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read the beginning of a video or of an interval."""
        interval = interval or Interval()
        window = interval.beginning(self.seconds)
        if Path(path).is_dir():
            rate = self.frame_rate or self.fps
            frames, seconds = read_frame_folder(path, self.fps, self.size, window, rate, self.max_pixels)
        else:
            frames, seconds = read_frames(path, self.fps, self.size, window, self.max_pixels)
        available = interval.length_in(seconds)
        check_min_length(path, available, self.min_seconds)
        return FileContent(frames, available)


def _sample_frames(path: Path, sampler: _Sampler, start: float, max_pixels: int) -> float:
    """Give a sampler the frames of a file from ``start`` seconds on.

    Returns:
        Duration of the whole video in seconds; see :func:`read_frames`.
    """
    with open_stream(path, "video") as source:
        stream = source.stream
        check_pixels(stream.width, stream.height, max_pixels, "frames of ")
        stream.thread_type = "NONE"
        frame_seconds = 1 / float(stream.average_rate or 25)
        sampler.start = source.origin + start
        for packet in source.packets(start):
            if sampler.complete:
                continue  # the times of the packets tell whether the file is whole
            for frame in stream.decode(packet):
                check_pixels(frame.width, frame.height, max_pixels, "frames of ")
                known = frame.duration and frame.time_base
                length = float(frame.duration * frame.time_base) if known else frame_seconds
                sampler.add(frame, None if frame.pts is None else frame.time, length)
        source.check_truncation()
        declared = source.declared_duration
        sampler.finish(None if declared is None else declared - start)
        if sampler.end <= 0 and start:
            raise ValueError(f"it lasts {start + sampler.end:.2f} s, its interval begins at {start:g} s")
        if sampler.length <= 0:
            raise ValueError("it has no frame that can be decoded")
        return max(sampler.end + start, source.duration if sampler.complete else 0.0)


def _max_frames(size: int) -> int:
    """Maximum number of frames kept of a video."""
    return _MAX_BYTES // (3 * size * size)


class _Sampler:
    """Selection of frames by time from a stream, in bounded memory.

    How long a frame is shown is known only when the next one arrives. So the newest frame is held back, and converted
    if a sampling time comes before the next: most frames are never converted. Frames are converted, which resizes them,
    before they are kept: a list of whole frames would take gigabytes.

    Args:
        fps: Frames per second to keep.
        convert: Converts a frame to what is kept of it.
        max_frames: Number of kept frames above which a video is refused.
        limit: Seconds that are wanted; None for all.

    Attributes:
        start: Time from which frames are wanted; None for that of the first frame.
        frames: The kept frames.
        end: End of the last frame, in seconds from the start.
        length: Seconds that were sampled, once :meth:`finish` was called.
    """

    def __init__(self, fps: float, convert: Callable[[Any], Any], max_frames: int, limit: float | None = None) -> None:
        self.fps, self.convert, self.max_frames = fps, convert, max_frames
        self.limit = math.inf if limit is None else limit
        self.start: float | None = None
        self.frames: list[Any] = []
        self.end = self.length = 0.0
        self.newest: tuple[float, Any] | None = None

    @property
    def complete(self) -> bool:
        """Whether no later frame is wanted."""
        return self.newest is not None and self.newest[0] >= self.limit

    def add(self, frame: Any, time: float | None, length: float) -> None:
        """Add the next frame, its time and its length in seconds.

        The time is None in files without times.
        """
        if self.start is None:
            self.start = 0.0 if time is None else time
        shown = self.end if time is None else time - self.start
        if self.newest is None:
            shown = min(shown, 0.0)  # a picture that begins after the sound: its first frame is shown until then
        if (
            min(shown + length, self.limit) > MAX_SECONDS
        ):  # two frames days apart would be kept a hundred thousand times
            raise ValueError(f"it is too long: at most {MAX_SECONDS} s are read. {_LESS}")
        if self.newest is not None and shown <= self.newest[0]:
            return  # out of order or a duplicate: it would move time backwards
        if self.newest is not None:
            self._keep(self.newest[1], min(shown, self.limit))
        self.newest = (shown, frame)
        self.end = max(self.end, shown + length) if time is None else (time - self.start) + length

    def finish(self, declared: float | None) -> None:
        """Keep the last frame, whose end is at most ``declared`` seconds, where the header states them."""
        if self.newest is None:
            return
        if declared is not None and self.newest[0] < declared:
            self.end = min(self.end, declared)  # the last frame's length is a guess in some formats
        self.length = min(self.end, self.limit)
        self._keep(self.newest[1], self.length)

    def _keep(self, frame: Any, until: float) -> None:
        """Keep a frame for every sampling time before ``until``."""
        converted = None
        while (len(self.frames) + 0.5) / self.fps < until:
            if len(self.frames) >= self.max_frames:
                raise ValueError(
                    f"it is too long: at most {self.max_frames} frames of this size are kept of a video. {_LESS}"
                )
            converted = self.convert(frame) if converted is None else converted
            self.frames.append(converted)


class _Converter:
    """Conversion of decoded frames into colours of a square.

    The tables of FFmpeg's conversion are made once per video: they take longer than a frame.

    Args:
        size: Height and width of the result.
    """

    def __init__(self, size: int) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.size = size
        self._reformatter = VideoReformatter()
        # Other workers decode meanwhile: threads for one small frame would wait for each other.
        self._options = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame: shape (size, size, 3), uint8."""
        rgb = self._reformatter.reformat(frame, format="rgb24", **self._options)
        image: Image.Image = rgb.to_image()  # type: ignore[no-untyped-call]
        return resize_to_square(_upright(image, frame.side_data.get("DISPLAYMATRIX")), self.size)


def _upright(image: Image.Image, matrix: Any) -> Image.Image:
    """Image turned and mirrored by a display matrix; as it is without one."""
    from PIL.Image import Transpose

    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if max(abs(a), abs(d)) > max(abs(b), abs(c)):
        mirrored, flipped = a < 0, d < 0
    else:
        image, mirrored, flipped = image.transpose(Transpose.TRANSPOSE), c < 0, b < 0
    if mirrored:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if flipped else image
