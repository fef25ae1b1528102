"""Source files of AV-MNIST."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

_IMAGE_FOLDERS = ("mnist", "MNIST/raw", ".")
_RECORDING_FOLDERS = ("fsdd/recordings", "free-spoken-digit-dataset/recordings", "recordings")


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording of the Free Spoken Digit Dataset, by its name."""

    path: Path
    digit: int
    speaker: str
    index: int


def find_images(root: Path) -> list[Path]:
    """Files of images and labels of t10k, and of train if present."""
    folders = [root / folder for folder in _IMAGE_FOLDERS]
    files_of = {
        (stem, content): _first_file(
            folders, (f"{stem}-{content}{dot}{kind}-ubyte{gz}" for gz in ("", ".gz") for dot in "-.")
        )
        for stem in ("t10k", "train")
        for content, kind in (("images", "idx3"), ("labels", "idx1"))
    }
    needed = (
        ["t10k"] if files_of["train", "images"] is None and files_of["train", "labels"] is None else ["t10k", "train"]
    )
    files = []
    for stem in needed:
        for content, kind in (("images", "idx3"), ("labels", "idx1")):
            file = files_of[stem, content]
            if file is None:
                raise FileNotFoundError(
                    f"There is no {stem}-{content}-{kind}-ubyte (or .gz) in {', '.join(map(str, folders))}."
                )
            files.append(file)
    return files


def _first_file(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    names = list(names)
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def find_recordings(root: Path) -> list[Recording]:
    """All recordings, sorted by name."""
    folders = [root / folder for folder in _RECORDING_FOLDERS]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"There is no folder of recordings: looked for {', '.join(map(str, folders))}.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".wav" and path.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"There are no .wav files in {folder}.")
    return [_parse_name(path) for path in files]


def _parse_name(path: Path) -> Recording:
    match = re.fullmatch(r"([0-9])_([a-z]+)_([0-9]{1,6})\.wav", path.name)
    if match is None:
        raise ValueError(f"{path} should be named {{digit}}_{{speaker}}_{{index}}.wav, as 7_theo_12.wav.")
    return Recording(path, int(match[1]), match[2], int(match[3]))


def checksum(files: Iterable[Path]) -> str:
    """One SHA-256 sum over the names and contents of all files."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
