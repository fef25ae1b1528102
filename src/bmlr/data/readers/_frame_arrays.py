"""Read frames of any channels from arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from bmlr.data._base import Modality
from bmlr.data.readers._arrays import load_numbers
from bmlr.data.readers._base import FileContent, FrameReader, Interval, check_min_length
from bmlr.data.readers._video import SteadyFrames, natural_key

_MAX_BYTES = 1 << 30  # of the frames kept of one file
_MAX_CHANNELS = 64  # more is an axis of pixels


@dataclasses.dataclass(frozen=True)
class FrameArrayReader(FrameReader):
    """Reader of frames in an array, or in a folder with an array each.

    An array holds frames (T, H, W, C) or (T, C, H, W), the shorter end being the channels, or (T, H, W) of one channel.
    A folder holds a file (H, W, C), (C, H, W) or (H, W) per frame, in the order of the numbers in their names. Frames
    are chosen at a steady rate and resized to squares as those of folders of images are.

    Args:
        size: Height and width in pixels.
        fps: Frames per second of the result.
        min_seconds: Shorter ones are refused.
        seconds: Length that is read; None reads all.
        frame_rate: Frames per second in the arrays; None takes ``fps``, so that all are read.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    version: ClassVar[int] = 1

    @property
    def modality(self) -> Modality:
        """Frames (T, H, W, C), T by the file, C by the first of all."""
        return Modality("frames", (-1,))

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read the beginning of an array of frames, or of an interval."""
        interval = interval or Interval()
        frames = _read_folder(Path(path)) if Path(path).is_dir() else _read_frames(Path(path))
        window = interval.beginning(self.seconds)
        steady = SteadyFrames(Path(path), len(frames), self.frame_rate or self.fps, window, self.fps)
        if max(steady.count, 1) * self.size**2 * frames[0].shape[-1] * 4 > _MAX_BYTES:
            raise ValueError(f"{path} holds more than a gigabyte of frames: take smaller --size, --fps or --seconds.")
        available = interval.length_in(steady.seconds)
        check_min_length(Path(path), available, self.min_seconds)
        return FileContent(
            np.stack([_resize(np.asarray(frames[index]), self.size) for index in steady.indices()]), available
        )


def list_arrays(folder: Path) -> list[Path]:
    """Arrays of a folder, ordered by the numbers in their names."""
    arrays = [path for path in folder.iterdir() if path.suffix.lower() == ".npy" and path.name[0] != "."]
    return sorted(arrays, key=natural_key)


def _read_folder(folder: Path) -> list[np.ndarray]:
    """Frames (H, W, C) of a folder."""
    paths = list_arrays(folder)
    if not paths:
        raise ValueError(f"{folder} should hold arrays (.npy), a frame each. It holds none.")
    frames = []
    for path in paths:
        values = load_numbers(path, mapped=True)
        if values.ndim not in {2, 3}:
            raise ValueError(
                f"{path} should hold one frame of shape (H, W, C), (C, H, W) or (H, W). Found {values.shape}."
            )
        frames.append(_channels_last(path, values[None])[0])
    if len({(frame.shape[-1], frame.dtype) for frame in frames}) > 1:
        raise ValueError(f"The arrays of {folder} should have one type and number of channels.")
    return frames


def _read_frames(path: Path) -> np.ndarray:
    """Frames (T, H, W, C) of a file, mapped into memory."""
    values = load_numbers(path, mapped=True)
    if values.ndim not in {3, 4} or not values.size:
        raise ValueError(
            f"{path} should hold frames of shape (T, H, W, C), (T, C, H, W) or (T, H, W). Found {values.shape}."
        )
    return _channels_last(path, values)


def _channels_last(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim == 3:
        return values[..., None]
    if values.shape[1] < values.shape[3]:
        values = values.transpose(0, 2, 3, 1)
    if values.shape[3] > _MAX_CHANNELS:
        raise ValueError(f"{path} should have at most {_MAX_CHANNELS} channels. Found shape {values.shape}.")
    return values


def _resize(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (H, W, C) as a square, of type uint8 if it is so, else float32."""
    pixels = torch.from_numpy(np.array(frame.transpose(2, 0, 1), dtype=np.float32, order="C"))[None]
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    resized: np.ndarray = pixels[0].permute(1, 2, 0).contiguous().numpy()
    return resized.round().clip(0, 255).astype(np.uint8) if frame.dtype == np.uint8 else resized
