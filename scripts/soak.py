"""Train, stop and resume in one process for as long as asked, and watch its memory and open files.

Every cycle is a run of another method on synthetic data: it is stopped by SIGTERM at a random step, resumed, and
compared with the first run of that method, which nothing stopped. The process should neither grow nor keep files open.

    python scripts/soak.py --minutes 20

ends with exit status 1 if memory has grown by more than the tolerance between the second and the last quarter of the
time, if more files or threads are open at the end, or if a resumed run has other weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import bmlr.data
import bmlr.methods
from bmlr._files import file_checksum
from bmlr.config import TrainerOptions
from bmlr.methods import Method
from bmlr.runs import RunInterruptedError
from bmlr.training import train

OPTIONS = TrainerOptions(epochs=2, batch_size=32, accelerator="cpu", devices=1, progress=False, checkpoint_every=2)
SPARE_FILES = 2  # of what libraries keep open once they were used


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the process uses after a cycle."""

    minutes: float
    cycles: int
    resident: float  # megabytes
    files: int
    threads: int


def main() -> int:
    """Run the cycles, print a table, judge it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--tolerance", type=float, default=3.0, help="growth of memory that counts as flat, percent")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between the lines of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| minutes | cycles | resident memory (MB) | open files | threads |\n| --- | --- | --- | --- | --- |")
    readings, printed = [], -arguments.every / 60
    with tempfile.TemporaryDirectory() as folder:
        for reading in cycles(Path(folder), arguments.minutes):
            readings.append(reading)
            if reading.minutes - printed >= arguments.every / 60:
                show(reading)
                printed = reading.minutes
    show(readings[-1])
    return judge(readings, arguments.tolerance)


def cycles(folder: Path, minutes: float) -> Iterator[Reading]:
    """A reading after every cycle, until the time is up."""
    rng = random.Random(0)  # noqa: S311
    names = bmlr.methods.available()
    expected: dict[str, str] = {}
    started = time.monotonic()
    number = 0
    while (elapsed := (time.monotonic() - started) / 60) < minutes or number <= len(names):
        name = names[number % len(names)]
        directory = folder / str(number)
        if name in expected:
            one_cycle(directory, name, rng.randint(1, 8), workers=2 if number % 5 == 0 else 0)
        else:
            run(directory, make(name))
        found = file_checksum(directory / "last.safetensors")
        if expected.setdefault(name, found) != found:
            sys.exit(f"The resumed run of {name} has other weights than the one that nothing stopped.")
        for path in sorted(directory.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        number += 1
        gc.collect()
        yield Reading(elapsed, number, resident(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count())


def one_cycle(directory: Path, name: str, at: int, workers: int) -> None:
    """A run that is stopped in a batch and resumed."""
    method = make(name)
    compute_losses = method.compute_losses
    seen: list[None] = []

    def stop(*given: object) -> object:
        seen.append(None)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_losses(*given)  # type: ignore[arg-type]

    method.compute_losses = stop  # type: ignore[method-assign, assignment]
    try:
        run(directory, method, workers)
    except RunInterruptedError:
        run(directory, make(name), workers)


def make(name: str) -> Method:
    """A method that does all it does within two epochs."""
    method = bmlr.methods.get(name)
    modality = method.conformance.modality_parameter
    return method(**method.conformance.short, **({modality: "audio"} if modality else {}))


def run(directory: Path, method: Method, workers: int = 0) -> None:
    """Train, or go on."""
    data = bmlr.data.create("synthetic", samples={"train": 128, "val": 64, "test": 64})
    options = dataclasses.replace(OPTIONS, num_workers=workers)
    train(data, method, trainer=options, run=directory, resume=True)


def resident() -> float:
    """Resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def show(reading: Reading) -> None:
    """A line of the table."""
    print(
        f"| {reading.minutes:.1f} | {reading.cycles} | {reading.resident:.1f} | {reading.files} | {reading.threads} |",
        flush=True,
    )


def judge(readings: list[Reading], tolerance: float) -> int:
    """Compare the last quarter of the time with the second; the first warms up."""
    end = readings[-1].minutes
    second = [r for r in readings if 0.25 * end <= r.minutes < 0.5 * end]
    last = [r for r in readings if r.minutes >= 0.75 * end]
    before, after = (statistics.median(r.resident for r in split) for split in (second, last))
    growth = 100 * (after / before - 1)
    files, threads = (
        max(getattr(r, what) for r in last) - max(getattr(r, what) for r in second) for what in ("files", "threads")
    )
    flat = growth <= tolerance and files <= SPARE_FILES and threads <= 0
    print(
        f"Memory {before:.1f} → {after:.1f} MB ({growth:+.2f} %, tolerance {tolerance:g} %), open files {files:+d}, "
        f"threads {threads:+d}: {'flat' if flat else 'NOT flat'}."
    )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
