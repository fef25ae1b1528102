"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
#: Letters that browsers no longer draw from a variant of the element.
_LETTERS = {r"\mathcal N": "𝒩", r"\mathcal{N}": "𝒩"}


def with_mathml(page: str) -> str:
    """A page of HTML with its formulas as MathML."""
    return _FORMULA.sub(_mathml, page)


def _mathml(found: re.Match[str]) -> str:
    formula = html.unescape(found[2]).strip()
    display = "inline" if found[1] == "span" else "block"
    formula = formula[2:-2].strip()  # \( \) or \[ \]
    for name, letter in _LETTERS.items():
        formula = formula.replace(name, letter)
    formula = re.sub(r"\{aligned\}", "{align*}", formula)
    element = convert(formula, display=display)
    label = html.escape(formula, quote=True)
    return f'<{found[1]} class="formula" title="{label}">{element}</{found[1]}>'
