"""Readers by what was kept of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._audio import AudioReader
from bmlr.data.readers._images import ImageReader
from bmlr.data.readers._video import VideoReader
from bmlr.data.transforms._spectrogram import Spectrogram


def reader_of(parameters: Mapping[str, Any]) -> AudioReader | VideoReader | ImageReader | ArrayReader:
    """The reader with these ``parameters``, so that new files are read as the prepared ones were.

    Raises:
        ValueError: If there is no such reader, or it reads otherwise by now.
    """
    kinds = {kind.__name__: kind for kind in (AudioReader, VideoReader, ImageReader, ArrayReader)}
    given = dict(parameters)
    kind = kinds.get(given.pop("reader", ""))
    if kind is None or given.pop("version", None) != kind.version:
        raise ValueError(f"This version of bmlr cannot read files as {dict(parameters)}: prepare the data again.")
    if "spectrogram" in given:
        given["spectrogram"] = Spectrogram(**given["spectrogram"])
    return kind(**given)
