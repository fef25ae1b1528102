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

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import bmlr": ["-c", "import bmlr"],
    "bmlr --help": ["-m", "bmlr", "--help"],
    "bmlr --version": ["-m", "bmlr", "--version"],
    "bmlr methods": ["-m", "bmlr", "methods"],
    "bmlr tran": ["-m", "bmlr", "tran"],
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
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            seconds[name].append(user_seconds(arguments))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| command | time / import torch |\n| --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {median / medians['import torch']:.2f} |")


if __name__ == "__main__":
    main()
