"""Parts of pages that are known elsewhere: docstrings, help of commands, tables of facts."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from unittest import mock

from evidence import evidence_table

import bmlr.cli
from bmlr.commands import COMMANDS

_MARK = re.compile(r"^<!-- site: (\w+)((?: [\w-]+)*) -->$", re.MULTILINE)


def with_docstrings(markdown: str) -> str:
    """A page on methods with the docstrings of those that its head names."""
    names = re.findall(r"`bmlr\.methods\.(\w+)`", markdown.partition("\n## ")[0])
    title = "## Formula, parameters and deviations" if names else ""
    return "\n\n".join([markdown, title, *(f"::: bmlr.methods.{name}" for name in names)])


def help_pages() -> str:
    """Help of every command, as it is printed."""
    return "\n\n".join(f"## bmlr {name}\n\n```text\n{_printed('help', name)}\n```" for name in COMMANDS)


def _printed(*arguments: str) -> str:
    text = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(text):
        bmlr.cli.main(list(arguments))
    return text.getvalue().rstrip()


INSERTS: dict[str, Callable[..., str]] = {"evidence": evidence_table, "help": help_pages}


def insert(markdown: str) -> str:
    """A page with its marks replaced by what they name."""
    return _MARK.sub(lambda found: INSERTS[found[1]](*found[2].split()), markdown)
