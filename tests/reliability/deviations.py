"""By how much two processes with half of every batch each differ from one process with the whole of it.

    python tests/reliability/deviations.py

prints the largest difference of a gradient for every method, over the cases of the distributed conformance tests.
"""

import collections
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import torch
import two_processes
from torch.multiprocessing.spawn import spawn


def largest(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of gradients, where a missing one counts as zero."""
    empty = torch.zeros(())
    pairs = ((first.get(name, empty), second.get(name, empty)) for name in {**first, **second})
    return max(float((one - other).abs().max()) for one, other in pairs)


def main() -> None:
    """Print the table."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        spawn(two_processes.run, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case in two_processes.CASES:
        expected = two_processes.all_gradients(case, None)
        for results in ranks:
            steps = results["-".join(map(str, case))]
            found[case[0]] += [largest(one, other) for one, other in zip(steps, expected, strict=True)]
    print("| method | steps compared | largest difference of a gradient |\n| --- | --- | --- |")
    for subject, differences in found.items():
        print(f"| {subject} | {len(differences)} | {max(differences):.1e} |")


if __name__ == "__main__":
    main()
