"""A small table of samples with a file of every kind, written with real media."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from media_fixtures import write_mp4, write_wav
from PIL import Image

HEAD = ["id", "label", "group", "voice", "photo", "clip:video", "pose:array", "age:vector", "words:text features"]
LABELS = ("cat", "dög", "bird")


def write_samples(folder: Path, count: int = 24, *, clips: bool = True) -> list[list[str]]:
    """Files of ``count`` samples in ``folder``, and the table's rows."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        label = number % len(LABELS)
        name = f"{LABELS[label]} {number}"
        write_wav(folder / f"{name}.wav", 1.2, frequency=200 * (1 + label))
        image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        image[..., label] |= 0xC0
        Image.fromarray(image).save(folder / f"{name}.png")
        if clips:
            write_mp4(folder / f"{name}.mp4", 1.0, fps=4, channels=1)
        np.save(folder / f"{name} pose.npy", rng.normal(label, 1, (3 + number % 4, 5)))
        np.save(folder / f"{name} age.npy", rng.normal(label, 1, 2))
        np.save(folder / f"{name} words.npy", rng.normal(label, 1, (2 + number % 3, 6)))
        clip = f"{name}.mp4" if clips else ""
        files = [f"{name}.wav", f"{name}.png", clip, f"{name} pose.npy", f"{name} age.npy", f"{name} words.npy"]
        if number % 5 == 4:
            files[1] = ""
        rows.append([f"s{number}", LABELS[label], f"g{number // 2}", *files])
    return rows


def write_table(
    path: Path,
    rows: Iterable[Sequence[object]],
    head: Sequence[str] = HEAD,
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
    ends: str = "\r\n",
) -> Path:
    """Write the rows under their head as CSV."""
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=ends).writerows([head, *rows])
    return path
