"""What a step gains as a CUDA graph.

Run ``python benchmarks/graph.py`` on a machine with a CUDA device; without one it says so and ends with status 2. Three
ways to take the same steps, in turn, in one process, for each method:

* eager: forward, losses, backward, the method's change of gradients, and Adam;
* graph: forward, losses and backward as ``--trainer.graph auto`` captures them, the rest as above;
* compile: eager with encoders compiled as ``--trainer.compile`` does.

Ratios are of the time of an eager step to that of the way, in the same round: two is twice as fast.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

import bmlr
from bmlr.encoders import resnet18
from bmlr.methods import EpochContext
from bmlr.training._graph import CapturedStep, CudaGraphs

#: Steps before the first timed one: three eager ones before a capture, and those of a compiler.
WARM_UP = 6


def make_step(method_name: str, way: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one step on one batch."""
    torch.manual_seed(0)
    device = torch.device("cuda")
    shapes = {"audio": (1, *options.audio), "video": (3, *options.video)}
    encoders = {
        name: resnet18(in_channels=shape[0], width=options.width, stem="small") for name, shape in shapes.items()
    }
    model = bmlr.MultimodalClassifier(encoders, 6).to(device)
    if way == "compile":
        for encoder in model.encoders.values():
            encoder.compile()
    method = bmlr.methods.create(method_name)
    method.setup(model)
    method.start_epoch(EpochContext(epoch=0, max_epochs=20, model=model))
    optimizer = torch.optim.Adam([*model.parameters(), *method.parameters()], lr=1e-4, fused=True)
    inputs = {name: torch.randn(options.batch_size, *shape, device=device) for name, shape in shapes.items()}
    batch = bmlr.Batch(inputs, torch.randint(6, (options.batch_size,), device=device))
    captured_step = CapturedStep(model, method, CudaGraphs(device))

    def step() -> None:
        optimizer.zero_grad()
        if way == "graph":
            captured_step(batch, scale=1.0, is_first=True)
        else:
            method.backward(method.compute_losses(model, batch), model)
        method.adjust_gradients(model)
        optimizer.step()

    return step


def measure(step: Callable[[], None], batches: int) -> float:
    """Milliseconds of a step."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(batches):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / batches * 1e3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["Joint", "BMLR", "OGMGE", "MMPareto"])
    parser.add_argument("--ways", nargs="+", choices=("graph", "compile"), default=["graph", "compile"])
    parser.add_argument("--width", type=int, default=64, help="channels of the ResNets' first stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--audio", nargs=2, type=int, default=(32, 47), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--video", nargs=2, type=int, default=(28, 28), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batches", type=int, default=50, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; status 2 without a CUDA device."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("Graphs are for CUDA devices, and torch finds none here.", file=sys.stderr)
        return 2
    print(f"\nTorch {torch.__version__}, {torch.cuda.get_device_name()}, {vars(options)}\n")
    print("| method | eager, ms | " + " | ".join(f"eager / {way} | range" for way in options.ways) + " |")
    print("| --- | ---: |" + " ---: | ---: |" * len(options.ways))
    for name in options.methods:
        steps = {way: make_step(name, way, options) for way in ("eager", *options.ways)}
        for step in steps.values():
            for _ in range(WARM_UP):
                step()
        rounds = [{way: measure(step, options.batches) for way, step in steps.items()} for _ in range(options.rounds)]
        cells = [f"{statistics.median(times['eager'] for times in rounds):.2f}"]
        for way in options.ways:
            ratios = [times["eager"] / times[way] for times in rounds]
            cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
