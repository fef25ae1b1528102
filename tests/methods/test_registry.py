"""Methods by name."""

import inspect
import re
from typing import get_args

import pytest

import bmlr
from bmlr import methods
from bmlr.methods._base import Family


def test_names_are_classes_of_the_package():
    names = methods.available()
    assert len(set(names)) == len(names)
    for name in names:
        cls = getattr(methods, name)
        assert methods.get(name) is cls
        assert name in methods.__all__
        assert issubclass(cls, bmlr.Method)
        assert not inspect.isabstract(cls)


def test_every_public_method_is_listed():
    public = {
        name
        for name in methods.__all__
        if inspect.isclass(cls := getattr(methods, name)) and issubclass(cls, bmlr.Method) and cls is not bmlr.Method
    }
    assert public == set(methods.available())


def test_names_and_titles_are_unambiguous():
    """No name or title, however it is written, leads to two methods."""
    owners = {}
    for name in methods.available():
        for written in {name, methods.get(name).info.title}:
            folded = re.sub(r"[\s_&-]", "", written).casefold()
            assert owners.setdefault(folded, name) == name
            assert methods.get(written) is getattr(methods, name)


@pytest.mark.parametrize("name", ["OnlyTPO", "only-tpo", "Only-TPO", "ONLY_TPO", "only tpo"])
def test_spelling_does_not_matter(name):
    assert methods.get(name) is methods.OnlyTPO


@pytest.mark.parametrize(("wrong", "meant"), [("BMRL", "BMLR"), ("onlytop", "OnlyTPO"), ("uniform", "UniformBaseline")])
def test_unknown_name(wrong, meant):
    with pytest.raises(ValueError, match=rf"`method` should be one of Joint, .*'{wrong}'`. Did you mean '{meant}'\?"):
        methods.get(wrong)


def test_create():
    method = methods.create("bmlr", alpha=0.5, beta=0)
    assert isinstance(method, bmlr.BMLR)
    assert method.parameters_given == {"alpha": 0.5, "beta": 0.0}
    with pytest.raises(ValueError, match="`beta` should lie in"):
        methods.create("BMLR", beta=2)


@pytest.mark.parametrize("name", methods.available())
def test_facts(name):
    info = methods.get(name).info
    assert all((info.title, info.paper, info.venue, info.cost))
    assert info.url.startswith("https://")
    assert info.family in get_args(Family)
