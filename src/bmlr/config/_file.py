"""Text of ``config.yaml``: plain YAML without aliases, sealed by a checksum."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bmlr._files import text_checksum

SECTIONS = ("data", "method", "model", "optimizer", "trainer", "seed")

_SEAL = "# Checksum of what follows; remove this line if you change that: sha256 "


class _PlainLoader(yaml.SafeLoader):
    """Loader of plain data without aliases.

    By aliases a page of text can stand for more than memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            where = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", where)
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    """Dumper for the same."""


for _kind in (_PlainLoader, _PlainDumper):
    # PyYAML takes 3e-5 for text: YAML 1.1 asks for a point in a number with an exponent.
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
    )


def load_plain_yaml(text: str) -> Any:
    """Parse YAML into plain data.

    Nothing is made or imported, and aliases are refused.

    Raises:
        yaml.YAMLError: If it is not YAML, or more than plain data.

    Example:
        >>> load_plain_yaml("a: [1, x, 3e-5]")
        {'a': [1, 'x', 3e-05]}
    """
    return yaml.load(text, _PlainLoader)  # noqa: S506  (it is a SafeLoader)


def read_plain_yaml(path: Path) -> tuple[str, Any]:
    """Text and plain data of a YAML file; see :func:`load_plain_yaml`.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is not YAML, or more than plain data; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return text, load_plain_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from error


def sealed_yaml(entries: Mapping[str, Any]) -> str:
    """YAML text of entries with its checksum in the first line."""
    text = yaml.dump(dict(entries), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return f"{_SEAL}{text_checksum(text)}\n{text}"


def read_config_entries(path: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run as plain data.

    Its sections are by name. No class is made and nothing is imported.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not the configuration of a run; the message says what to do.
    """
    entries, intact = read_entries(path)
    check_seal(path, intact)
    return entries


def read_entries(path: Path) -> tuple[dict[str, Any], bool | None]:
    """Read the sections of a ``config.yaml``.

    Returns:
        The sections, and whether they fit the file's seal; None without a seal.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no run in {path.parent}: {path.name} is missing.")
    text, entries = read_plain_yaml(path)
    intact = _fits_seal(text)
    if not isinstance(entries, dict) or set(entries) != set(SECTIONS):
        names = sorted(map(str, entries)) if isinstance(entries, dict) else type(entries).__name__
        raise ValueError(
            f"{path} is cut off or not the configuration of a run: it should have the entries {', '.join(SECTIONS)}. "
            f"Found {names}.{other_version(intact)}"
        )
    for name in SECTIONS[:-1]:
        if not isinstance(entries[name], dict):
            raise ValueError(f"{path}: {name} should be entries by name. Found {entries[name]!r}.")
    for name in ("data", "method"):
        class_path, parameters = entries[name].get("class_path"), entries[name].get("init_args") or {}
        if not isinstance(class_path, str) or not isinstance(parameters, dict):
            raise ValueError(
                f"{path}: {name} should have the entries class_path and init_args. Found {entries[name]!r}."
            )
    if isinstance(entries["seed"], bool) or not isinstance(entries["seed"], int):
        raise ValueError(f"{path}: seed should be an integer. Found {entries['seed']!r}.")
    return entries, intact


def check_seal(path: Path, intact: bool | None) -> None:
    """Raise if a configuration does not fit its seal.

    Callers look for wrong entries first: a typo is better named than the changed checksum that it causes.
    """
    if intact is False:
        raise ValueError(
            f"{path} does not fit its checksum: it was changed or damaged after it was written. Put it back, or "
            "remove its first line if the change was meant."
        )


def other_version(intact: bool | None) -> str:
    """Cause and remedy where an intact file is not understood."""
    return " The file is intact: another version of bmlr wrote it. Make the run again with this one." if intact else ""


def _fits_seal(text: str) -> bool | None:
    first_line, _, content = text.partition("\n")
    # A file without the line was changed on purpose; any other comment in its place is what damage left of it.
    if not first_line.startswith("#"):
        return None
    return first_line == f"{_SEAL}{text_checksum(content)}"
