"""Explanations of options, from docstrings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bmlr.commands.options import Option

if TYPE_CHECKING:
    import docstring_parser

_SPECIAL = {
    "config": "YAML file with any of these options, such as the config.yaml of a run; options typed here count more.",
    "import": "Modules of your own classes, such as the method's or an encoder's, as a,b; runs their code.",
}


def read_texts(owner: Any) -> dict[str, str]:
    """Explanations of parameters by name, from the docstrings of a function, or of a class and its bases."""
    texts: dict[str, str] = {}
    for documented in getattr(owner, "__mro__", (owner,)):
        for entry in parse_docstring(documented.__doc__ or "").params:
            texts.setdefault(entry.arg_name, " ".join((entry.description or "").split()))
    return texts


def explain(option: Option) -> str:
    """Explanation of an option, without markup."""
    field = option.name.rpartition(".")[2]
    return plain_text(_SPECIAL.get(field) or read_texts(option.owner).get(field, ""))


def plain_text(text: str) -> str:
    """Text of a docstring without its markup."""
    return re.sub(r"\bNone\b", "none", re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", ""))


def parse_docstring(docstring: str) -> docstring_parser.Docstring:
    """A docstring of Google's style, or of another where it has no sections of that."""
    import docstring_parser  # of the extra `train`, without which the wrong use of a command is told all the same

    # A guess of the style takes a line that begins with a formula, ``:math:``, for a field of reStructuredText.
    parsed = docstring_parser.parse(docstring, docstring_parser.DocstringStyle.GOOGLE)
    return parsed if parsed.meta else docstring_parser.parse(docstring)
