"""Roles of docstrings, such as ``:func:`` and ``.. math::``, as the Markdown of the site."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_MATH_BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*)\n((?:\n*\1[ ]+\S.*\n?)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([^`]+)`")


class Roles(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring with formulas between dollar signs, and roles as code.

    Example:
        >>> as_markdown("Labels :math:`y` of :func:`bmlr.wrap`.")
        'Labels $y$ of `bmlr.wrap`.'
    """
    text = _MATH_BLOCK.sub(_display, text + "\n")
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${found[1].strip()}$", text, flags=re.DOTALL)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # the parser's name for doctests
    return _ROLE.sub(_name, text).rstrip("\n")


def _display(found: re.Match[str]) -> str:
    """A displayed formula."""
    indent, first, rest = found.groups()
    formula = "\n".join(line for line in [first.strip(), *textwrap.dedent(rest).splitlines()] if line.strip())
    return f"{indent}$$\n{textwrap.indent(formula, indent)}\n{indent}$$\n"


def _name(found: re.Match[str]) -> str:
    """Code of a name: its last part, where a tilde says so."""
    short, path = found.groups()
    return f"`{path.rpartition('.')[2] if short else path}`"
