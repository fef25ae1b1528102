"""Cost of imports, and public names."""

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import bmlr
from bmlr.commands import COMMANDS

PUBLIC_MODULES = ["bmlr", "bmlr.encoders", "bmlr.functional", "bmlr.fusion", "bmlr.methods"]
#: Modules that come with extras; ``import bmlr`` must work where they are not installed.
HEAVY = [
    "av",
    "jsonargparse",
    "librosa",
    "lightning",
    "matplotlib",
    "pandas",
    "PIL",
    "ray",
    "rich",
    "safetensors",
    "sklearn",
    "soundfile",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
    "transformers",
]


def test_import_needs_torch_and_numpy_only():
    """Public modules import and work in an interpreter without the extras."""
    program = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # makes `import name` fail
import torch, bmlr
for module in {PUBLIC_MODULES}:
    __import__(module)
model = bmlr.MultimodalClassifier({{"a": torch.nn.Linear(2, 3), "v": torch.nn.Linear(2, 3)}}, 2)
output = model({{"a": torch.randn(4, 2), "v": torch.randn(4, 2)}})
bmlr.BMLR()(output, torch.tensor([0, 1, 1, 0])).total.backward()
print(sorted(name for name, module in sys.modules.items() if module and name.startswith("bmlr.training")))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_without_extras_a_sentence_says_how_to_get_them():
    """Commands that need no extra work, the others end in one sentence; packages say the same as attributes."""
    program = f"""
import contextlib, io, sys
for name in {[*HEAVY, "docstring_parser", "filelock", "jinja2", "optuna", "scipy", "yaml"]}:
    sys.modules[name] = None  # makes `import name` fail
import bmlr, bmlr.cli
for name in ("load", "training", "benchmark", "report", "config", "runs", "reproduction"):
    for load in (lambda: getattr(bmlr, name), lambda: __import__("bmlr." + name)):
        try:
            load()
        except (ModuleNotFoundError, AttributeError) as error:
            assert 'is not installed. Run: pip install "bmlr[train]"' in str(error) or name not in bmlr._LAZY, error
        else:
            raise AssertionError(name)
assert bmlr.data.available() and bmlr.diagnosis.diagnose
for line in {["", "help", "--help", "--version", "methods --format json", "methods --format markdown"]}:
    assert bmlr.cli.main(line.split()) == 0, line
for line in {
        [
            "methods",
            *(f"{name} --help" for name in COMMANDS),
            "train digits --method BMLR",
            "prepare ave a b",
            "evaluate a",
            "predict a b.wav",
            "report a",
            "compare digits --methods BMLR",
        ]
    }:
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        assert bmlr.cli.main(line.split()) == 2, line
    assert 'is not installed. Run: pip install "bmlr[' in stream.getvalue(), (line, stream.getvalue())
    assert stream.getvalue().count(chr(10)) == 1
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 0, result.stderr


def modules_after(*stages):
    """Top-level modules imported by then, after each stage of a program in one fresh interpreter."""
    program = ["import sys, os, contextlib, io", "told = sys.stdout"]
    for lines in stages:
        program += [
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):",
            *(f"    {line}" for line in lines),
            "print(*{name.partition('.')[0] for name in sys.modules}, file=told)",
        ]
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=True
    )
    return [set(line.split()) for line in result.stdout.splitlines()]


def test_commands_and_packages_import_what_they_need():
    """Help, version, a wrong command and the list of methods would otherwise take seconds."""

    def typed(*lines):
        return [f"bmlr.cli.main({line.split()})" for line in lines]

    pages = ["--help", "--version", "tran", "methods", "", *(f"{name} --help" for name in COMMANDS), *COMMANDS]
    pages.remove("compare")  # without options it compares the runs in runs/
    wrong = ["train digits --method BMLR --trainer.epochs x", "compare digits --seeds x", "prepare ave a b --size x"]
    package, of_pages, of_wrong, of_evaluate, of_compare = modules_after(
        ["import bmlr"],
        ["import bmlr.cli", *typed(*pages)],
        typed(*wrong),
        typed("evaluate nowhere"),
        ["bmlr.benchmark.compare"],
    )
    heavy = {"lightning", "pandas", "matplotlib", "sklearn", "ray", "av"}
    assert not package & {*heavy, "jsonargparse", "docstring_parser"}
    assert not of_pages & {*heavy, "jsonargparse"}
    assert not of_wrong & heavy
    assert "lightning" in of_evaluate
    assert "pandas" in of_compare


def test_a_wrong_attribute_is_named():
    with pytest.raises(AttributeError, match="no attribute 'trainig'"):
        _ = bmlr.trainig


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_exist(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [public for public in module.__all__ if not hasattr(module, public)]


def public_symbols():
    for name in PUBLIC_MODULES:
        module = importlib.import_module(name)
        for public in module.__all__:
            symbol = getattr(module, public)
            if inspect.isclass(symbol) or inspect.isfunction(symbol):
                yield f"{name}.{public}", symbol


@pytest.mark.parametrize(("name", "symbol"), list(public_symbols()), ids=[name for name, _ in public_symbols()])
def test_public_symbols_are_documented(name, symbol):
    """Classes and functions have a summary; all but plain records have an example."""
    assert inspect.getdoc(symbol), name
    assert symbol.__doc__, f"{name} has only an inherited docstring"
    record = name.rpartition(".")[2] in {
        "Conformance",
        "EpochContext",
        "EpochPlan",
        "Method",
        "MethodInfo",
        "Pass",
        "Prediction",
        "Remedy",
        "ReshapedLabels",
    }
    assert record or doctest.DocTestParser().get_examples(symbol.__doc__), f"{name} has no example"


def test_version():
    assert bmlr.__version__.split(".")[0].isdigit()
