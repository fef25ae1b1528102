"""Print the share of mutants that the tests noticed, of those that ``mutmut run`` has tried.

Fails below 85 %, and where a mutant of those asked for was not tried. ``--sample`` takes a random share of them, always
the same, and prints the 95 % interval of the share of all that it stands for. With ``--names`` it prints the names that
``mutmut run`` is to try instead: those not tried yet, or those that no test has failed on. Among the latter are those
that ran into their time limit, since a busy machine can be what stopped them.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

#: Ends of a mutant by which the tests have noticed it.
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}
#: Those that say so without a doubt.
CERTAIN = {"killed", "caught by type check"}
UNTRIED = "not checked"
LEAST = 85.0


def main() -> int:
    """Count the results by module and in all, or list names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of mutants, as given to mutmut run")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the mutants to take, above 0 and up to 1")
    parser.add_argument("--names", choices=("untried", "unnoticed"), help="print names for mutmut run instead")
    arguments = parser.parse_args()
    if not 0 < arguments.sample <= 1:
        parser.error(f"argument --sample: should lie above 0 and up to 1, found {arguments.sample}")
    if arguments.names:
        make_mutants()
    everyone = {
        name: state
        for name, state in read_results().items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.patterns)
    }
    results = {name: state for name, state in everyone.items() if place(name) < arguments.sample}
    if not results:
        sys.exit(f"There are no mutants {' '.join(arguments.patterns)}.")
    if arguments.names:
        print("\n".join(chosen(results, arguments.names)))
        return 0
    return report(results, len(everyone))


def make_mutants() -> None:
    """Copy the sources to mutants/ and mutate them, the first step of ``mutmut run``; quick where it is done."""
    from mutmut.__main__ import create_mutants
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths

    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the names
        copy_src_dir()
        copy_also_copy_files()
        setup_source_paths()
        create_mutants(os.cpu_count() or 1)


def read_results() -> dict[str, str]:
    """How each mutant ended, by its name."""
    listed = subprocess.run(
        [sys.executable, "-m", "mutmut", "results", "--all", "true"], check=True, capture_output=True, text=True
    ).stdout
    return dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+?)\s*$", listed, re.MULTILINE))


def place(name: str) -> float:
    """A number in [0, 1) for each name that has nothing to do with what it says."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def chosen(results: dict[str, str], which: str) -> list[str]:
    """The names of the mutants not tried, or of those that no test has failed on."""
    if which == "untried":
        return [name for name, state in results.items() if state == UNTRIED]
    return [name for name, state in results.items() if state not in CERTAIN | {UNTRIED}]


def report(results: dict[str, str], population: int) -> int:
    """Print shares by module and in all; zero, the exit status, if all were tried and enough were noticed."""
    counts: dict[str, Counter[str]] = {}
    for name, state in results.items():
        counts.setdefault(re.split(r"\.x[_ǁ]", name)[0], Counter())[state] += 1
    for module, states in sorted(counts.items()):
        print_share(module, states)
    everything = sum(counts.values(), Counter[str]())
    share = print_share("all", everything)
    if len(results) < population and not everything[UNTRIED]:
        low, high = interval(share, len(results), population)
        print(f"A sample of {len(results)} of {population} mutants; of all, {low:.1f} to {high:.1f} % (95 % interval)")
    return 0 if share >= LEAST and not everything[UNTRIED] else 1


def print_share(module: str, states: Counter[str]) -> float:
    """Print and return the share of the mutants tried that were noticed, in per cent."""
    noticed, tried = sum(states[state] for state in NOTICED), states.total() - states[UNTRIED]
    share = 100 * noticed / tried if tried else 0.0
    doubtful = sum(states[state] for state in NOTICED - CERTAIN)
    print(
        f"{module}: {noticed} of {tried} noticed, {share:.1f} %"
        + (f", {doubtful} of them by time limit or crash" if doubtful else "")
        + (f"; {states[UNTRIED]} not tried" if states[UNTRIED] else "")
    )
    return share


def interval(share: float, tried: int, population: int) -> tuple[float, float]:
    """Wilson's 95 % interval, in per cent, of a share found in a sample drawn without replacement."""
    p, z = share / 100, 1.96
    n = tried * (population - 1) / max(population - tried, 1)  # as much as so many drawn with replacement
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (centre - spread) / (1 + z * z / n), 100 * (centre + spread) / (1 + z * z / n)


if __name__ == "__main__":
    sys.exit(main())
