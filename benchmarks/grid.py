"""Cost of a grid of runs beyond the training itself.

Run ``python benchmarks/grid.py``: two grids of short runs on the embedded digits, of few and of more seeds, both on one
server. What a further run costs beyond the seconds its training reports is the overhead of a run; what is left of the
small grid is its start. Both are told in seconds and in units of ``import torch`` and of a run's own seconds, measured
beside them, so that a machine that drifts slows all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bmlr.data
from bmlr.benchmark.engines import LocalEngine
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.config import ModelOptions, TrainerOptions


def import_seconds(module: str) -> float:
    """Wall time of a process that imports a module."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)  # noqa: S603
    return time.perf_counter() - started


def grid_seconds(folder: Path, seeds: range, *, plan: bool) -> tuple[float, float]:
    """Wall time of a grid, and the seconds that its runs report."""
    trainer = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False)
    data = bmlr.data.create("digits")
    jobs = make_jobs(data, ["Joint", "BMLR"], seeds, model=ModelOptions(width=2), trainer=trainer)
    started = time.perf_counter()
    records = run_grid(jobs, folder, LocalEngine(), plan=plan, say=lambda _: None)
    return time.perf_counter() - started, sum(record.finished_result["seconds"] for record in records)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="Seeds of the larger grid.")
    seeds = parser.parse_args().seeds
    imports = {module: import_seconds(module) for module in ("torch", "bmlr.training")}
    with tempfile.TemporaryDirectory() as name:
        first, first_training = grid_seconds(Path(name), range(1), plan=True)
        more, training = grid_seconds(Path(name), range(1, 1 + seeds), plan=False)
    runs = 2 * seeds
    overhead, run = (more - training) / runs, training / runs
    start = first - first_training - 2 * overhead
    print("| what | seconds | / import torch | / a run's training |\n| --- | ---: | ---: | ---: |")
    for label, value in (
        ("import bmlr.training", imports["bmlr.training"]),
        ("start of a grid of two runs: server, and a few steps to estimate its time", start),
        ("a run's training", run),
        ("a run beyond its training", overhead),
    ):
        print(f"| {label} | {value:.2f} | {value / imports['torch']:.2f} | {value / run:.2f} |")


if __name__ == "__main__":
    main()
