"""Lower bounds of ``pyproject.toml`` as constraints for pip: the oldest versions that the package says it works with.

Run ``python scripts/lowest_versions.py > lowest.txt``; ``make test-lowest`` installs them and runs tests. What the
dependencies need themselves is left to pip. Tools of the development have no part in it.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
#: Extras that a user does not install.
TOOLS = {"dev", "docs", "release"}


def lowest_versions(project: Path = PROJECT) -> dict[str, str]:
    """Lowest version of every dependency, by name.

    Raises:
        ValueError: If a dependency has no lower bound, or two.
    """
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in table["optional-dependencies"].items() if name not in TOOLS]
    bounds: dict[str, str] = {}
    for line in [*table["dependencies"], *(line for lines in extras for line in lines)]:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", line)
        if match is None:
            raise ValueError(f"{line} should have one lower bound, as name>=1.2, and nothing else.")
        name, version = match.groups()
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds: {bounds[name]} and {version}.")
    return bounds


def main() -> None:
    """Print the constraints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--leave-out", nargs="*", default=[], help="Names whose version is said elsewhere.")
    left_out = parser.parse_args().leave_out
    for name, version in lowest_versions().items():
        if name not in left_out:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
