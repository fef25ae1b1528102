"""Cost of starting ``bmlr``, relative to ``import torch``.

Run ``python benchmarks/startup.py``: every command runs in fresh processes, in turns, so that a machine that drifts
slows all of them. The figures are medians of processor time in user mode.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

from bmlr.commands import COMMANDS

#: Command lines that are measured, beside the two imports.
LINES = (
    "--help",
    "--version",
    "methods",
    "tran",
    *(f"{name} --help" for name in COMMANDS),
    "help train all",
    "help train BMLR",
    "train digits",
    "train digits --metod BMLR",
    "train digits --method BMLR --trainer.epochs three",
    "train digits --method BMLR --method.gamma 2",
    "prepare ave a b --workers many",
    "compare digits --methods Joint --seeds x",
)
PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import bmlr": ["-c", "import bmlr"],
    **{f"bmlr {line}": ["-m", "bmlr", *line.split()] for line in LINES},
}


def user_seconds(arguments: list[str]) -> float:
    """User time of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)  # noqa: S603
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="Processes per command.")
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, arguments in PROGRAMS.items():
            seconds[name].append(user_seconds(arguments))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| command | time / import torch |\n| --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {median / medians['import torch']:.2f} |")


if __name__ == "__main__":
    main()
