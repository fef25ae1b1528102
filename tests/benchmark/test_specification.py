import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr.methods
from bmlr.benchmark.specification import parse_data, parse_method


@pytest.mark.parametrize(
    ("written", "text", "parameters", "epochs"),
    [
        ("joint", "Joint", {}, None),
        ("only-tpo@7", "OnlyTPO@7", {}, 7),
        ("BMLR: alpha=0.5, beta=0", "BMLR:alpha=0.5,beta=0", {"alpha": "0.5", "beta": "0"}, None),
        ("ReconBoost:t1=1,t2=1@7", "ReconBoost:t1=1,t2=1@7", {"t1": "1", "t2": "1"}, 7),
    ],
)
def test_specifications_are_read(written, text, parameters, epochs):
    specification = parse_method(written)
    assert specification.text == text
    assert dict(specification.parameters) == parameters
    assert specification.epochs == epochs


@pytest.mark.parametrize("name", bmlr.methods.available())
def test_every_method_is_made_with_its_defaults(name):
    assert parse_method(name).make().hparams == bmlr.methods.create(name).hparams


@given(st.integers(1, 1000), st.floats(0.01, 100), st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_values_come_back_as_they_were_written(epochs, alpha, beta):
    specification = parse_method(f"BMLR:alpha={alpha!r},beta={beta!r}@{epochs}")
    assert specification.make().hparams == {"alpha": alpha, "beta": beta}
    assert specification.epochs == epochs


def test_whole_numbers_become_what_the_parameter_is():
    # 1 and 1.0 are one configuration, so they must not be two runs.
    assert parse_method("BMLR:alpha=1").make().hparams == parse_method("BMLR:alpha=1.0").make().hparams


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BMRL", "Did you mean 'BMLR'"),
        ("BMLR:", "should be written NAME"),
        ("BMLR:alpha", "should be written NAME"),
        (":alpha=1", "should be written NAME"),
        ("BMLR:alpha=1,alpha=2", "name every parameter once"),
        ("BMLR@", "positive integer. Found ''"),
        ("BMLR@0", "positive integer. Found '0'"),
        ("BMLR@many", "positive integer. Found 'many'"),
    ],
)
def test_bad_specifications_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BMLR:alhpa=1", r"Method 'BMLR:alhpa=1' has no parameter alhpa. It has alpha, beta"),
        ("Joint:alpha=1", "It has none"),
        ("BMLR:alpha=much", "alpha"),
        ("BMLR:alpha=-1", "`alpha` should be a positive finite number"),
        ("nowhere.Thing", "nowhere.Thing cannot be imported"),
        ("pathlib.Path", "should be a class of a method or a data set"),
    ],
)
def test_bad_parameters_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text).make()


def test_classes_of_ones_own_are_made():
    data = parse_data("toy.Toy:samples=30,protocol=paper")
    assert (data.samples, data.protocol) == (30, "paper")
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        parse_data("digts")
    with pytest.raises(ValueError, match="has no parameter sampels"):
        parse_data("toy.Toy:sampels=3")
