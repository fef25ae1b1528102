"""What a step gains as a CUDA graph, and by compiled encoders.

Run ``python benchmarks/graph.py`` on a machine with a CUDA device; without one it says so and ends with status 2. Three
ways to take the same steps, in turn, in one process, for each method:

* eager: forward, losses, backward, the method's change of gradients, and Adam;
* graph: forward, losses and backward as ``--trainer.graph auto`` captures them, the rest as above;
* compile: eager with encoders compiled as ``--trainer.compile`` does.

With ``--device cpu`` there are no graphs, and processor time is counted, which other programs change little; compiling
needs a C++ compiler. Ratios are of the time of an eager step to that of the way, in the same round: two is twice as
fast. "before" is what the way takes before its first timed step, beyond the eager steps it takes there, in eager steps:
for compile the compiling, unless the compiler finds the encoders in its cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from step import wait

import bmlr
from bmlr.encoders import resnet18
from bmlr.methods import EpochContext
from bmlr.training._graph import CapturedStep, CudaGraphs

#: Steps before the first timed one: three eager ones before a capture, and those of a compiler.
WARM_UP = 6


def make_step(method_name: str, way: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one step on one batch."""
    torch.manual_seed(0)
    device = torch.device(options.device)
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
    captured_step = CapturedStep(model, method, CudaGraphs(device)) if way == "graph" else None

    def step() -> None:
        optimizer.zero_grad()
        if captured_step is not None:
            captured_step(batch, scale=1.0, is_first=True)
        else:
            method.backward(method.compute_losses(model, batch), model)
        method.adjust_gradients(model)
        optimizer.step()

    return step


def warm_up(step: Callable[[], None], device: str) -> float:
    """Take the steps before the first timed one and return their seconds on the wall, of all processes."""
    start = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    wait(device)
    return time.perf_counter() - start


def measure(step: Callable[[], None], options: argparse.Namespace) -> float:
    """Milliseconds of a step."""
    batches: int = options.batches
    now = time.process_time if options.device == "cpu" else time.perf_counter
    wait(options.device)
    start = now()
    for _ in range(batches):
        step()
    wait(options.device)
    return (now() - start) / batches * 1e3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["Joint", "BMLR", "OGMGE", "MMPareto"])
    parser.add_argument("--ways", nargs="+", choices=("graph", "compile"), help="all of the device if left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU; its own choice if left out")
    parser.add_argument("--width", type=int, default=64, help="channels of the ResNets' first stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--audio", nargs=2, type=int, default=(32, 47), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--video", nargs=2, type=int, default=(28, 28), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batches", type=int, default=50, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; status 2 where a way needs a CUDA device and there is none."""
    options = parse(arguments)
    options.ways = options.ways or (["compile"] if options.device == "cpu" else ["graph", "compile"])
    if options.device == "cpu" and "graph" in options.ways:
        print("Graphs are for CUDA devices: leave `--ways` or `--device cpu` out.", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("Torch finds no CUDA device here: --device cpu measures --trainer.compile.", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"\nTorch {torch.__version__}, {name}, {vars(options)}\n")
    print("| method | eager, ms | " + " | ".join(f"eager / {way} | range | before" for way in options.ways) + " |")
    print("| --- | ---: |" + " ---: | ---: | ---: |" * len(options.ways))
    for name in options.methods:
        steps = {way: make_step(name, way, options) for way in ("eager", *options.ways)}
        before = {way: warm_up(step, options.device) for way, step in steps.items()}
        rounds = [{way: measure(step, options) for way, step in steps.items()} for _ in range(options.rounds)]
        cells = [f"{statistics.median(times['eager'] for times in rounds):.2f}"]
        for way in options.ways:
            ratios = [times["eager"] / times[way] for times in rounds]
            cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
            cells += [f"{(before[way] - before['eager']) / before['eager'] * WARM_UP:,.0f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
