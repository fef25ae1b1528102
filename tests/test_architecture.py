"""Imports point one way, without circles, through public names, as the page says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import bmlr

PACKAGE = Path(bmlr.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")

#: The layers as the page shows them, lowest first. A module imports from its own package and from layers below.
LAYERS = [line.split() for line in PAGE.split("## Direction of imports")[1].split("```")[1].split("\n") if line]
#: The package itself and its entry points stand above all.
LEVELS = {name: level for level, layer in enumerate([*LAYERS, ["", "__main__"]]) for name in layer}
#: Private modules that other packages import, each with the reason.
PRIVATE = {
    "_version": "the version, of all",
    "_checks": "checks of arguments, of all",
    "_console": "consoles that print names as they are, of all that print",
    "_extras": "the command that installs a missing library, of all that need extras",
    "_files": "atomic writes and checksums, of all",
    "_modes": "training and evaluation mode of modules, of all",
    "_processors": "number of processors, of the store and the engines",
    "_random": "state of random generators, of all",
}


def parse_modules() -> dict[str, ast.Module]:
    """Every module by its dotted name below ``bmlr``, parsed."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def imported(tree: ast.AST, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """Modules of ``bmlr`` that a module imports, also inside functions and for annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, name = target.partition(".")
            if top == "bmlr":
                yield name if name in modules else name.rpartition(".")[0]


def package_of(module: str) -> str:
    """Layer of a module: the longest name that contains it."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in LEVELS), "(none)")


def arrows_up(arrows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> list[str]:
    """Imports from beside or above."""
    return [
        f"{module} -> {target}"
        for module, target in arrows
        if package_of(module) != package_of(target) and LEVELS[package_of(target)] >= LEVELS[package_of(module)]
    ]


def circles(arrows: list[tuple[str, str]]) -> list[str]:
    """Modules on a circle of imports, or above one."""
    remaining: dict[str, set[str]] = {}
    for module, target in arrows:
        remaining.setdefault(module, set()).add(target)
    while free := [module for module, targets in remaining.items() if not targets & set(remaining)]:
        for module in free:
            del remaining[module]
    return sorted(remaining)


def private_imports(arrows: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Imports of another top-level package's private modules."""
    return {
        (module, target)
        for module, target in arrows
        if module.split(".")[0] != target.split(".")[0] and any(name.startswith("_") for name in target.split("."))
    }


MODULES = parse_modules()
ARROWS = sorted(
    {(module, name) for module, tree in MODULES.items() for name in imported(tree, MODULES) if name != module}
)


def test_every_module_has_a_layer():
    assert [module for module in MODULES if package_of(module) == "(none)"] == []


def test_imports_point_down():
    assert arrows_up(ARROWS) == []


def test_there_are_no_circles():
    """A module on a circle would depend on the order of imports."""
    assert circles(ARROWS) == []


def test_packages_meet_through_public_names():
    """A private module may change together with its package alone."""
    private = private_imports(ARROWS)
    assert sorted(f"{module} -> {target}" for module, target in private if target not in PRIVATE) == []
    assert sorted(set(PRIVATE) - {target for _, target in private}) == []


@pytest.mark.parametrize(
    ("module", "line", "finding"),
    [
        ("functional._labels", "import bmlr.methods", arrows_up),
        ("runs._records", "from bmlr.training import train", arrows_up),
        ("data.readers._audio", "def read():\n    from bmlr.data.store import _cache", arrows_up),
        ("report._page", "from bmlr.training._module import BalancedModule", private_imports),
        ("methods._base", "from bmlr.methods._bmlr import BMLR", circles),
    ],
)
def test_a_wrong_import_is_found(module, line, finding):
    arrows = [*ARROWS, *((module, target) for target in imported(ast.parse(line), MODULES))]
    assert len(finding(arrows)) > len(finding(ARROWS))


def test_the_page_shows_every_folder():
    tree = PAGE.split("```")[1]
    folders = {path.parent.relative_to(PACKAGE).name for path in PACKAGE.rglob("__init__.py")} - {""}
    assert [folder for folder in sorted(folders) if f" {folder}/ " not in tree] == []


def test_json_for_others_is_written_in_one_place():
    """``json.dumps`` writes NaN, which is no JSON: what is written or printed comes from ``json_text``."""
    pattern = re.compile(r"(write_text|print)\((?:(?!\n\n)[\s\S]){0,200}?\bdumps\(")
    assert [path.name for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))] == []
