"""Suffixes of readable files."""

from __future__ import annotations

from pathlib import Path

from bmlr.data.readers._audio import AUDIO_SUFFIXES
from bmlr.data.readers._video import VIDEO_SUFFIXES

_SUFFIXES = {
    "audio": (*AUDIO_SUFFIXES, ".mp3", ".m4a", ".aac", ".opus"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    "video": VIDEO_SUFFIXES,
    "array": (".npy",),
}
#: Kind of a file (audio, image, video, array) by its suffix.
FILE_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}

_MODALITY_KINDS = {"audio": "spectrogram", "image": "image", "video": "frames"}


def modality_kind(path: Path) -> str | None:
    """Kind of a file's modality, by its suffix.

    None for suffixes of several or unknown kinds.
    """
    return _MODALITY_KINDS.get(FILE_KINDS.get(path.suffix.lower(), ""))
