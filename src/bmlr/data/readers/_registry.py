"""Readers rebuilt from stored parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._audio import AudioReader
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._flow import FlowReader
from bmlr.data.readers._frame_arrays import FrameArrayReader
from bmlr.data.readers._images import ImageReader
from bmlr.data.readers._text import TextReader
from bmlr.data.readers._video import VideoReader
from bmlr.data.transforms._spectrogram import Spectrogram

_READERS = (AudioReader, VideoReader, ImageReader, ArrayReader, FrameArrayReader, FlowReader, TextReader)


def reader_of(parameters: Mapping[str, Any]) -> FileReader:
    """Make a reader from its stored parameters.

    It reads new files as the prepared ones were read.

    Raises:
        ValueError: If there is no such reader, or its version is another one.
    """
    kinds = {kind.__name__: kind for kind in _READERS}
    arguments = dict(parameters)
    kind = kinds.get(arguments.pop("reader", ""))
    if kind is None or arguments.pop("version", None) != kind.version:
        raise ValueError(f"This version of bmlr cannot read files as {dict(parameters)}: prepare the data again.")
    if "spectrogram" in arguments:
        arguments["spectrogram"] = Spectrogram(**arguments["spectrogram"])
    return cast("FileReader", kind(**arguments))
