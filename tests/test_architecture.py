"""Imports point one way, without circles, and go through the packages' public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bmlr

ROOT = Path(bmlr.__file__).parent

#: The layers, lowest first. A module imports from its own package and from layers below, never from beside or above.
LAYERS = (
    ("_version", "_checks", "_files", "_modes", "_random"),
    ("functional",),
    ("fusion", "encoders", "batch"),
    ("model",),
    ("methods",),
    ("monitor", "data.base", "figures"),
    ("data.readers", "data.transforms"),
    ("data.store",),
    ("data.sets",),
    ("data",),
    ("data.inspection", "config"),
    ("runs",),
    ("training",),
    ("diagnosis", "benchmark"),
    ("report", "reproduction"),
    ("commands",),
    ("cli", "__main__", ""),
)
#: Private modules that other packages import, each with the reason.
PRIVATE: dict[str, str] = {}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below ``bmlr``, parsed."""
    names = {path.relative_to(ROOT).with_suffix(""): path for path in sorted(ROOT.rglob("*.py"))}
    return {
        ".".join(name.parts).removesuffix("__init__").removesuffix("."): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in names.items()
    }


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of ``bmlr`` that a module imports, also inside functions and for annotations alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] == "bmlr":
                name = ".".join(parts[1:])
                yield name if name in MODULES else ".".join(parts[1:-1])


def package_of(module: str) -> str:
    """The package a module belongs to, as the layers name it."""
    packages = [name for layer in LAYERS for name in layer]
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in packages:
            return name
    return module if module in packages else "(none)"


LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
ARROWS = sorted({(module, target) for module, tree in MODULES.items() for target in imports(tree) if target != module})


def test_every_module_has_a_layer():
    assert [module for module in MODULES if package_of(module) == "(none)"] == []


def test_imports_point_down():
    wrong = [
        f"{module} -> {target}"
        for module, target in ARROWS
        if package_of(module) != package_of(target) and LEVEL[package_of(target)] >= LEVEL[package_of(module)]
    ]
    assert wrong == []


def test_no_circles():
    """A module that can be reached from what it imports would depend on the order of imports."""
    below: dict[str, set[str]] = {module: {target for m, target in ARROWS if m == module} for module in MODULES}
    remaining = dict(below)
    while free := [module for module, targets in remaining.items() if not targets & set(remaining)]:
        for module in free:
            del remaining[module]
    assert sorted(remaining) == []


def test_packages_meet_through_public_names():
    """A private module may change with its package alone; the exceptions are written above."""
    used = {
        (module, target)
        for module, target in ARROWS
        if package_of(module) != package_of(target) and any(part.startswith("_") for part in target.split(".")[1:])
    }
    assert sorted(f"{module} -> {target}" for module, target in used if target not in PRIVATE) == []
    assert sorted(set(PRIVATE) - {target for _, target in used}) == [], "no longer imported from elsewhere"


@pytest.mark.parametrize(("module", "target"), [("functional._labels", "methods"), ("runs._records", "training")])
def test_an_arrow_upwards_would_be_found(module, target):
    assert LEVEL[package_of(target)] >= LEVEL[package_of(module)]
