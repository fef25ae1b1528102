"""Suffixes of readable files."""

from __future__ import annotations

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

#: Kinds of modalities that a kind of file is read as.
MODALITY_KINDS: dict[str, tuple[str, ...]] = {
    "audio": ("spectrogram",),
    "image": ("image",),
    "video": ("frames",),
    "array": ("vector", "sequence"),
}
