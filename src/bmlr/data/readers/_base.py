"""Interface of a file reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bmlr._checks import check_integer, check_non_negative, check_positive
from bmlr.data._base import Modality


@dataclasses.dataclass(frozen=True)
class FileContent:
    """Array decoded from a file.

    Attributes:
        values: The array to store.
        seconds: Duration of the audio or video, or of the interval of it, before it was cut or repeated; None for
            files without one.
    """

    values: np.ndarray
    seconds: float | None = None


class Interval(NamedTuple):
    """Start and end in a file, in seconds.

    Attributes:
        start: Start.
        stop: End; None for that of the file.
    """

    start: float = 0.0
    stop: float | None = None

    def within(self, stop: float | None) -> Interval:
        """Interval that ends at ``stop`` at the latest."""
        stops = [time for time in (self.stop, stop) if time is not None]
        return Interval(self.start, min(stops, default=None))

    def beginning(self, seconds: float | None) -> Interval:
        """Its first seconds; None for all of it."""
        return self if seconds is None else self.within(self.start + seconds)

    def length_in(self, seconds: float) -> float:
        """Length of its part of a file that lasts so many seconds."""
        return (seconds if self.stop is None else min(self.stop, seconds)) - self.start


class FileReader(Protocol):
    """Decoder of one modality's files into arrays.

    It can be pickled, for worker processes. A dataclass that derives from it has its fields for parameters.
    """

    version: ClassVar[int]

    @property
    def modality(self) -> Modality:
        """Form of the stored arrays.

        A first dimension of −1 differs from file to file. With an empty shape, that of the first sample is required
        of all others.
        """

    @property
    def window(self) -> float | None:
        """Length in seconds read of a file, or None for all."""
        return None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything the array depends on besides the file, as JSON.

        Other values lead to another store.
        """
        fields: Any = self
        return {"reader": type(self).__name__, "version": self.version, **dataclasses.asdict(fields)}

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read a file, or an interval of audio or video.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the bytes are at fault: damaged, truncated, silent, too short, …; the message gives the
                reason.
            OSError: If the machine is at fault, as any error but a ValueError says: the file may be readable later.
        """


@dataclasses.dataclass(frozen=True)
class FrameReader(FileReader):
    """What readers of frames at a steady rate have in common; see :class:`VideoReader`."""

    size: int = 224
    fps: float = 1.0
    min_seconds: float = 0.0
    seconds: float | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_positive("fps", self.fps)
        check_non_negative("min_seconds", self.min_seconds)
        if self.seconds is not None:
            check_positive("seconds", self.seconds)
        if self.frame_rate is not None:
            check_positive("frame_rate", self.frame_rate)

    @property
    def window(self) -> float | None:
        """Length in seconds read of a file, or None for all."""
        return self.seconds


MAX_PIXELS = 50_000_000  # of an image or frame, unless given; a few kilobytes can unpack to gigabytes


def check_min_length(path: Path, seconds: float, min_seconds: float) -> None:
    """Raise a ValueError if audio or video is too short."""
    if seconds < min_seconds - 0.001:  # the last sample of a resampled file
        raise ValueError(
            f"{path} is too short: {seconds:.2f} s, at least {min_seconds:g} s are needed. Option --min-seconds takes "
            "shorter ones."
        )


def is_longer(seconds: float | None, window: float | None) -> bool:
    """Whether a file is longer than its window by over 5 %."""
    return seconds is not None and window is not None and seconds > 1.05 * window


def check_pixels(width: int, height: int, max_pixels: int, noun: str) -> None:
    """Raise a ValueError if an image would take too much memory."""
    if width * height > max_pixels:
        raise ValueError(
            f"it has {noun}{width} × {height} pixels, at most {max_pixels} are read; option --max-pixels takes more"
        )
