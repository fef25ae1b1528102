"""How fast raw media become a prepared data set, and what training gains by it.

Run ``python benchmarks/data.py``: writes clips as CREMA-D's (a wav file and a flash video of 480 × 360 pixels and 30
frames a second each) to a temporary folder, and measures

* the time that FFmpeg's libraries take to decode the videos on one thread and convert nothing (and the program
  ``ffmpeg``, where there is one), against reading their frames and against all that a preparation does with a clip
  (picture, sound, checksums, one file written), as ratios of one round;
* clips per second of the preparation with 1 and 2 workers, over its last three quarters: the time until the first clip
  is done, in which workers start, is beside it, for on a real data set it does not matter;
* samples per second and core from the prepared data set, at the paper's size (spectrogram 257 × 188, 3 frames of
  224 × 224): as they are stored, which is what travels to a GPU, and finished on the CPU with crops and flips; and the
  field's habit of decoding in ``__getitem__`` (librosa for the spectrogram, PyAV and PIL for the frames) with the same
  crops and flips. All take turns in every round, so that a machine that drifts slows all. The prepared files are in the
  page cache, as those of a data set smaller than the memory are after the first epoch. One worker loads and hands over
  while this process waits. Beside it stands the number of workers that an H200 needs, which trains on 1,280 samples a
  second at this size (two ResNet-18, batches of 64, measured on one).
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import bmlr.data
from bmlr.data import prepare
from bmlr.data.readers._base import FileReader
from bmlr.data.readers._video import VideoReader
from bmlr.data.sets._crema_d import CREMAD
from bmlr.data.sets._media import make_audio_reader, make_video_reader
from bmlr.data.store._options import PrepareOptions
from bmlr.data.store._samples import SourceSample
from bmlr.data.store._workers import DecodeTask, decode
from bmlr.data.transforms._frames import augment_frames
from bmlr.training.loader import RequestLoader, planned_requests

APPETITE = 1280  # samples per second on which one H200 trains two ResNet-18 at the paper's size
_FIXTURES = Path(__file__).parent.parent / "tests" / "data" / "media_fixtures.py"


class DecodingDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """The field's habit: every item is decoded whenever it is asked for."""

    def __init__(self, items: Sequence[SourceSample], size: int) -> None:
        self.items, self.size = items, size
        self.classes = sorted({item.label for item in items})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        import librosa

        item = self.items[index]
        samples, _ = librosa.load(item.files["audio"], sr=22050)
        samples = np.clip(np.tile(samples, 3)[: 22050 * 3], -1, 1)
        spectrogram = np.log(np.abs(librosa.stft(samples, n_fft=512, hop_length=353)) + 1e-7)
        frames = VideoReader(self.size)(item.files["video"]).values
        rng = np.random.default_rng()
        seed = torch.tensor([int(rng.integers(2**62))])
        image = augment_frames(torch.from_numpy(frames[None, :3]), self.size, seed, train=True)[0]
        return torch.from_numpy(spectrogram)[None], image, self.classes.index(item.label)


def fixtures() -> types.ModuleType:
    """The module of the tests that writes media."""
    spec = importlib.util.spec_from_file_location("media_fixtures", _FIXTURES)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"There is no {_FIXTURES}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(WIDTH=480, HEIGHT=360)
    return module


def decode_alone(path: Path) -> int:
    """Number of frames of a video, decoded on one thread and not converted."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return sum(1 for _ in container.decode(stream))


def run_ffmpeg(path: Path) -> None:
    """Decode a video by the program ``ffmpeg`` on one thread, start of the process included."""
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-map", "0:v", "-f", "null", "-"]
    subprocess.run(command, check=True)  # noqa: S603


def time_decoding(items: Sequence[SourceSample], folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds that each way to decode takes for all clips, in turn, round by round; the first round is left out."""
    media = PrepareOptions(size=options.size)
    readers: dict[str, FileReader] = {"audio": make_audio_reader(media, 3.0), "video": make_video_reader(media, 3.0)}
    ways: dict[str, Callable[[SourceSample], object]] = {
        "FFmpeg's libraries, nothing converted": lambda item: decode_alone(item.files["video"]),
        "frames read": lambda item: readers["video"](item.files["video"]),
        "prepared: picture, sound, checksums, file": lambda item: decode(
            DecodeTask(item, folder / f"{item.id}.npz"), readers
        ),
    }
    if shutil.which("ffmpeg"):
        ways["program `ffmpeg`"] = lambda item: run_ffmpeg(item.files["video"])
    folder.mkdir()
    found: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(options.repeats + 1):
        for way, read in ways.items():
            start = time.perf_counter()
            for item in items:
                read(item)
            if round_number:
                found[way].append(time.perf_counter() - start)
    return found


def quartiles(values: Sequence[float], digits: int = 1) -> tuple[str, str]:
    """Median, and the quartiles as a range."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f}", f"{low:.{digits}f}–{high:.{digits}f}"


def time_preparation(source: Path, dest: Path, workers: int, size: int) -> list[float]:
    """Seconds after which each clip of a preparation was done, seen by its files."""
    done: list[float] = []
    ended = threading.Event()
    start = time.perf_counter()

    def watch() -> None:
        while not ended.wait(0.005):
            number = len(list(dest.glob(".*.partial/samples/[0-9]*.npz")))
            done.extend([time.perf_counter() - start] * (number - len(done)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        prepare("crema-d", source, dest, PrepareOptions(workers, size=size, progress=False))
    finally:
        ended.set()
        watcher.join()
    return done


def time_loading(items: Sequence[SourceSample], root: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Samples per second of each way to load the training split, round by round; the first round is left out."""
    split = bmlr.data.create("crema-d", root=root).split("train")
    chosen = {item.id: item for item in items}
    dataset = DecodingDataset([chosen[name] for name in split.ids], options.size)  # type: ignore[attr-defined]
    found: dict[str, list[float]] = {}
    for round_number in range(options.repeats + 1):
        requests = planned_requests(
            bmlr.methods.EpochPlan(), len(split), options.batch_size, seed=0, epoch=round_number
        )
        passes = 20  # over the prepared data, which one pass reads in an instant
        ways: dict[str, tuple[int, Iterable[object]]] = {
            "decoded in `__getitem__`": (1, DataLoader(dataset, options.batch_size, shuffle=True, num_workers=1)),
            "prepared, finished on the CPU": (2, RequestLoader(split, requests * 2, num_workers=1)),
            "prepared, finished on the GPU": (
                passes,
                RequestLoader(split, requests * passes, num_workers=1, late=True),
            ),
        }
        for way, (repeats, loader) in ways.items():
            batches = iter(loader)
            next(batches)  # the worker has started
            start, samples = time.perf_counter(), len(split) * repeats - len(requests[0].indices)
            for _ in batches:
                pass
            if round_number:
                found.setdefault(way, []).append(samples / (time.perf_counter() - start))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--actors", type=int, default=20, help="six clips each")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of the clips")
    parser.add_argument("--size", type=int, default=224, help="height and width of the stored frames")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of loading")
    parser.add_argument("--workers", nargs="+", type=int, default=(1, 2), help="workers of the preparations")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the two tables."""
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = fixtures().write_crema_d(folder / "source", options.actors, options.seconds, fps=29.97)
        items = CREMAD.list_samples(source, {})
        decoding = time_decoding(items, folder / "pieces", options)
        rows = []
        for workers in options.workers:
            done = time_preparation(source, folder / f"workers{workers}", workers, options.size)
            first, last = len(done) // 4, len(done) - 1
            rate = (last - first) / (done[last] - done[first])
            rows.append([str(workers), f"{done[0]:.1f}", f"{done[-1]:.1f}", f"{rate:.1f}"])
        rates = time_loading(items, folder / f"workers{options.workers[0]}", options)

    floor = next(iter(decoding.values()))
    lines = [
        [
            way,
            f"{len(items) / statistics.median(seconds):.1f}",
            *quartiles([mine / least for mine, least in zip(seconds, floor, strict=True)], 2),
        ]
        for way, seconds in decoding.items()
    ]
    print(f"Decoding of {len(items)} clips of {options.seconds:g} s, one process\n")
    print(table(["way", "clips / s", "time / FFmpeg's", "quartiles"], lines))
    print(f"\nPreparation of {len(items)} clips of {options.seconds:g} s\n")
    print(table(["workers", "first clip after, s", "last clip after, s", "clips / s"], rows))
    habit = next(iter(rates.values()))
    lines = [
        [
            way,
            f"{statistics.median(found):,.0f}",
            *quartiles([mine / least for mine, least in zip(found, habit, strict=True)]),
            f"{APPETITE / statistics.median(found):.1f}",
        ]
        for way, found in rates.items()
    ]
    print(f"\nLoading, batches of {options.batch_size}, one worker\n")
    print(table(["way", "samples / s", "ratio", "quartiles", "workers for an H200"], lines))


if __name__ == "__main__":
    main()
