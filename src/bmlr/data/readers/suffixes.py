"""Suffixes of readable files."""

from __future__ import annotations

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".wma", ".mka"),
    *(".aiff", ".aif", ".au", ".snd", ".caf", ".w64", ".rf64", ".ac3", ".amr"),
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES = (
    *(".mp4", ".flv", ".avi", ".mkv", ".webm", ".mov", ".m4v"),
    *(".3gp", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".ogv"),
)

_SUFFIXES = {
    "audio": AUDIO_SUFFIXES,
    "image": IMAGE_SUFFIXES,
    "video": VIDEO_SUFFIXES,
    "array": (".npy",),
    "text": (".txt",),
}
#: Kind of a file (audio, image, video, array, text) by its suffix.
FILE_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}

#: Kinds of modalities that a kind of file is read as.
MODALITY_KINDS: dict[str, tuple[str, ...]] = {
    "audio": ("spectrogram",),
    "image": ("image",),
    "video": ("frames",),
    "array": ("vector", "sequence", "frames"),
    "text": ("text",),
}
