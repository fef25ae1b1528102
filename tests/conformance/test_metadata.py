"""Facts, docstring and page of every registered method."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from subjects import METHODS

import bmlr
from bmlr.methods import MethodInfo
from bmlr.methods._types import Family

DOCS = Path(__file__).parents[2] / "docs" / "methods"
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_facts_are_complete_and_its_own(name):
    method = bmlr.methods.get(name)
    assert "info" in vars(method)
    assert all(value.strip() for value in dataclasses.astuple(method.info))
    assert method.info.family in get_args(Family)
    assert method.info.url.startswith("https://")
    assert isinstance(method.info, MethodInfo)


@each_method
def test_the_docstring_has_an_example_and_every_parameter(name):
    method = bmlr.methods.get(name)
    text = inspect.getdoc(method)
    assert ">>> " in text
    parameters = list(inspect.signature(method).parameters)
    described = text.partition("Args:")[2]
    for parameter in parameters:
        assert f"{parameter}:" in described, parameter
    if parameters:
        assert "Raises:" in text or method.__mro__[1].__name__ in METHODS  # inherited with its parameters


def pages():
    return {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md") if path.name != "README.md"}


@each_method
def test_one_page_of_the_documentation_is_about_it(name):
    matches = [page for page, text in pages().items() if f"`bmlr.methods.{name}`" in text.partition("\n## ")[0]]
    assert len(matches) == 1, matches
    text = pages()[matches[0]]
    for heading in ("## Idea", "## Cost", "## When to use it"):
        assert heading in text, heading


def sentences(text):
    """Sentences of prose with five words and more, in one form."""
    prose = re.sub(r"```.*?```|^\|.*$|\$\$.*?\$\$", "", text, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"(?<=[.;:])\s|\n\n|^\* ", prose, flags=re.MULTILINE)
    return {shown for part in parts if len((shown := " ".join(part.replace("``", "`").split())).split()) >= 5}


@each_method
def test_what_the_docstring_says_stands_there_alone(name):
    """Formula, parameters and deviations, which the site shows on the page."""
    text = next(text for text in pages().values() if f"`bmlr.methods.{name}`" in text.partition("\n## ")[0])
    assert not re.search(r"^## (Formula|Parameters|Deviations)", text, re.MULTILINE)
    assert sentences(text) & sentences(inspect.getdoc(bmlr.methods.get(name))) == set()


def test_no_page_is_about_a_method_that_does_not_exist():
    for page, text in pages().items():
        named = [word for word in text.partition("\n## ")[0].split("`") if word.startswith("bmlr.methods.")]
        assert named, page
        for word in named:
            assert word.removeprefix("bmlr.methods.") in METHODS, page


@each_method
def test_the_page_on_fidelity_says_what_it_was_compared_with(name):
    rows = re.findall(r"^\| ([^|]*) \|", (DOCS.parent / "fidelity.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(name in cell.split(", ") for cell in rows), name


def test_the_tables_on_fidelity_are_sorted_by_method():
    text = (DOCS.parent / "fidelity.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| method \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        names = [row.split("|")[1].partition(",")[0].strip().casefold() for row in table.splitlines()]
        assert names == sorted(names)
