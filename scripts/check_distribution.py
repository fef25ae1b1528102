"""Checks of the wheel and the source archive in ``dist/``: contents, size, metadata.

Run ``make dist``, which builds both first. What is wrong is printed, one line each, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: A wheel of this size holds more than the package and its digits.
MAX_WHEEL, MAX_ARCHIVE = 5_000_000, 12_000_000
#: What a source archive needs for its own tests, and what it must not hold.
NEEDED = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "tests/conftest.py", "Makefile"}
FOREIGN = {".git", ".venv", ".ci", "mutants", "runs", "demo", "dist", "site"}
EXTRAS = {"train", "media", "sweep", "hf", "timm", "export"}
PYTHONS = ("3.11", "3.12", "3.13")


def wheel_problems(path: Path) -> Iterator[str]:
    """What is wrong with a wheel, a line each."""
    if path.stat().st_size > MAX_WHEEL:
        yield f"{path.name} has {path.stat().st_size} bytes, more than {MAX_WHEEL}."
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        information = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(f"{information}/METADATA").decode()
    package = ROOT / "src"
    files = (file.relative_to(package).as_posix() for file in (package / "bmlr").rglob("*") if file.is_file())
    expected = {file for file in files if "__pycache__" not in file}
    for name in sorted(expected - names):
        yield f"{path.name} lacks {name}."
    for name in sorted(name for name in names - expected if not name.startswith(f"{information}/")):
        yield f"{path.name} holds {name}, which is no file of the package."
    for name in ("bmlr/py.typed", "bmlr/data/_assets/spoken_digits.flac", f"{information}/licenses/LICENSE"):
        if name not in names:
            yield f"{path.name} lacks {name}."
    yield from metadata_problems(metadata)


def metadata_problems(text: str) -> Iterator[str]:
    """What is wrong with the metadata of a wheel, a line each."""
    from bmlr import __version__

    metadata = message_from_string(text)
    for field, value in {"Name": "bmlr", "Version": __version__, "License-Expression": "MIT"}.items():
        if metadata[field] != value:
            yield f"{field} is {metadata[field]}, not {value}."
    classifiers = metadata.get_all("Classifier", [])
    for version in PYTHONS:
        if f"Programming Language :: Python :: {version}" not in classifiers:
            yield f"No classifier names Python {version}."
    for extra in sorted(EXTRAS - set(metadata.get_all("Provides-Extra", []))):
        yield f"The extra {extra} is missing."
    for url in metadata.get_all("Project-URL", []):
        if not url.partition(", ")[2].startswith("https://"):
            yield f"The address {url} is not one of https."
    for requirement in metadata.get_all("Requires-Dist", []):
        if "@" in requirement:
            yield f"{requirement} names a place instead of a version."


def archive_problems(path: Path) -> Iterator[str]:
    """What is wrong with a source archive, a line each."""
    if path.stat().st_size > MAX_ARCHIVE:
        yield f"{path.name} has {path.stat().st_size} bytes, more than {MAX_ARCHIVE}."
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in sorted(NEEDED - names):
        yield f"{path.name} lacks {name}."
    for name in sorted(names):
        if name.partition("/")[0] in FOREIGN or "__pycache__" in name:
            yield f"{path.name} holds {name}."


def main() -> int:
    """Print what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    folder: Path = parser.parse_args().folder
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    problems = [] if len(wheels) == len(archives) == 1 else [f"{folder} should hold one wheel and one source archive."]
    problems += [problem for wheel in wheels for problem in wheel_problems(wheel)]
    problems += [problem for archive in archives for problem in archive_problems(archive)]
    print("\n".join(problems) or f"{', '.join(path.name for path in [*wheels, *archives])}: as they should be.")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
