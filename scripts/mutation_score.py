"""Print the share of mutants that the tests noticed, of those that ``mutmut run`` has tried.

Fails below 85 %, and where a mutant of those asked for was not tried.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import sys
from collections import Counter

#: Ends of a mutant by which the tests have noticed it.
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}
LEAST = 85.0


def main() -> int:
    """Count the results by file and in all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of mutants, as given to mutmut run")
    patterns = parser.parse_args().patterns
    listed = subprocess.run(
        [sys.executable, "-m", "mutmut", "results", "--all", "true"], check=True, capture_output=True, text=True
    ).stdout
    counts: dict[str, Counter[str]] = {}
    for name, state in re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", listed, re.MULTILINE):
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            counts.setdefault(re.split(r"\.x[_ǁ]", name)[0], Counter())[state.strip()] += 1
    if not counts:
        sys.exit(f"There are no mutants {' '.join(patterns)}.")
    for module, states in [*sorted(counts.items()), ("all", sum(counts.values(), Counter[str]()))]:
        noticed, tried = sum(states[state] for state in NOTICED), states.total() - states["not checked"]
        share = 100 * noticed / tried if tried else 0.0
        print(f"{module}: {noticed} of {tried} noticed, {share:.1f} %; {states['not checked']} not tried")
    return 0 if share >= LEAST and not states["not checked"] else 1


if __name__ == "__main__":
    sys.exit(main())
