"""Optical flow published as two folders of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent, Interval
from bmlr.data.readers._video import VideoReader


@dataclasses.dataclass(frozen=True)
class FlowReader(VideoReader):
    """Reader of flow in two folders of grey images.

    Each has one direction: the path is that of the horizontal part, ``…/u/NAME``, the vertical one is ``…/v/NAME``.
    They hold an image per frame, 128 being no movement. Frames are chosen and resized as :class:`VideoReader` does.

    Args:
        size: Height and width in pixels.
        fps: Frames per second.
        min_seconds: Shorter ones are refused.
        seconds: Length that is read; None reads all.
        frame_rate: Images per second in the folders; None takes ``fps``, so that all are read.
        max_pixels: Images of more pixels are refused.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    version: ClassVar[int] = 1

    @property
    def modality(self) -> Modality:
        """Frames (T, H, W, 2), T by the duration."""
        return Modality("frames", (-1, self.size, self.size, 2))

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read the beginning of a flow or of an interval."""
        path = Path(path)
        vertical = vertical_flow(path)
        for folder in (path, vertical):
            if not folder.is_dir():
                raise ValueError(f"{path} should be a folder u/NAME beside v/NAME. There is no folder {folder}.")
        directions = [super(FlowReader, self).__call__(folder, interval) for folder in (path, vertical)]
        if len({content.seconds for content in directions}) > 1:
            raise ValueError(f"{path} and {vertical} should hold as many images.")
        return FileContent(np.stack([content.values[..., 0] for content in directions], axis=-1), directions[0].seconds)


def vertical_flow(horizontal: Path) -> Path:
    """Folder ``v/NAME`` that belongs to ``u/NAME``."""
    return horizontal.parent.with_name("v") / horizontal.name
