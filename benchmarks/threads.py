"""Cost of a training step by the number of threads, alone and beside other programs.

Run ``python benchmarks/threads.py``: every number of threads in turns in one process, so that a machine that drifts
slows all of them. Numbers are times relative to one thread. ``--load N`` computes in N other processes meanwhile, as
the other users of a shared machine do.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

import bmlr
from bmlr._processors import count_processors
from bmlr.encoders import MLP, resnet18

#: Models by name: encoder of the image by its width, and the size of the image.
MODELS = {"perceptron, width 16": (0, 0), "ResNet-18, width 4, 28 px": (4, 28), "ResNet-18, width 16, 28 px": (16, 28),
          "ResNet-18, width 64, 64 px": (64, 64)}  # fmt: skip
_BATCH = 32


def make_step(width: int, size: int) -> tuple[bmlr.MultimodalClassifier, bmlr.Batch]:
    """A model of two modalities and a batch for it."""
    torch.manual_seed(0)
    encoders: dict[str, torch.nn.Module] = {"audio": MLP(40, 16)}
    inputs = {"audio": torch.randn(_BATCH, 40)}
    if width:
        encoders["image"], inputs["image"] = resnet18(width=width, stem="small"), torch.randn(_BATCH, 3, size, size)
    else:
        encoders["image"], inputs["image"] = MLP(64, 16), torch.randn(_BATCH, 64)
    return bmlr.MultimodalClassifier(encoders, 10), bmlr.Batch(inputs, torch.arange(_BATCH) % 10)


def seconds(model: bmlr.MultimodalClassifier, batch: bmlr.Batch, threads: int, steps: int) -> float:
    """Mean time of a step of BMLR."""
    torch.set_num_threads(threads)
    method = bmlr.methods.BMLR()
    started = time.perf_counter()
    for _ in range(steps):
        model.zero_grad()
        method.compute_losses(model, batch).total.backward()
    return (time.perf_counter() - started) / steps


@contextlib.contextmanager
def other_programs(number: int) -> Iterator[None]:
    """So many processes that compute without end."""
    script = "import torch; torch.set_num_threads(1); x = torch.randn(300, 300)\nwhile True: x @ x"
    programs = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(number)]  # noqa: S603
    try:
        time.sleep(10 if number else 0)  # they start
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="Measurements per number of threads.")
    parser.add_argument("--load", type=int, default=0, help="Other processes that compute meanwhile.")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="Numbers of threads.")
    options = parser.parse_args()
    numbers = options.threads or sorted({1, 2, max(1, count_processors() // 2), count_processors()})
    print(f"| model | {' | '.join(f'{number} threads' for number in numbers)} |\n| --- |{' --- |' * len(numbers)}")
    with other_programs(options.load):
        for name, (width, size) in MODELS.items():
            model, batch = make_step(width, size)
            steps = max(1, int(0.3 / seconds(model, batch, 1, 2)))
            rounds = [[seconds(model, batch, number, steps) for number in numbers] for _ in range(options.rounds)]
            ratios = [statistics.median(line[k] / line[0] for line in rounds) for k in range(len(numbers))]
            print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
