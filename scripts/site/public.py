"""Public names of the package, and the pages of the API reference."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import bmlr
import bmlr.data
from bmlr.methods import Method


def public_modules() -> list[ModuleType]:
    """Modules that list their public names, without a private part in their path."""
    names = [info.name for info in pkgutil.walk_packages(bmlr.__path__, "bmlr.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    modules = [bmlr, *(importlib.import_module(name) for name in public)]
    return [module for module in modules if hasattr(module, "__all__") and module.__name__ != "bmlr.commands"]


def public_names() -> dict[str, list[str]]:
    """Paths of all public objects by module; an object of several modules is in the one that says most."""
    found: dict[int, str] = {}
    for module in sorted(public_modules(), key=lambda module: (module is bmlr, module.__name__)):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType) and not name.startswith("__"):
                found.setdefault(id(value), f"{module.__name__}.{name}")
    data_classes = (bmlr.data.get(name) for name in bmlr.data.available())
    paths = [*found.values(), *(f"{cls.__module__}.{cls.__qualname__}" for cls in data_classes)]
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault("bmlr.data" if path.startswith("bmlr.data.sets.") else path.rpartition(".")[0], []).append(
            path
        )
    return by_module


def is_method(path: str) -> bool:
    """Whether a path names a method, which has a page of its own."""
    return path.startswith("bmlr.methods.") and path.rpartition(".")[2] in bmlr.methods.available()


def api_pages(method_pages: dict[str, str]) -> dict[str, str]:
    """Pages of the reference by their path in the documentation.

    Args:
        method_pages: Page of each method, by its name, relative to the reference.
    """
    pages, rows = {}, []
    for module, paths in sorted(public_names().items()):
        text = [f"# {module}\n", f"{_first_lines(module)}\n"]
        methods = [path.rpartition(".")[2] for path in paths if is_method(path)]
        text += ["Methods: " + " · ".join(f"[{name}]({method_pages[name]})" for name in methods) + "\n"] * bool(methods)
        text += [f"::: {path}\n" for path in paths if not is_method(path)]
        pages[f"api/{module}.md"] = "\n".join(text)
        names = ", ".join(path.rpartition(".")[2] for path in paths)
        rows.append(f"| [{module}]({module}.md) | {names} |")
    head = ["# Python reference\n", "Every public name, from its docstring.\n", "| module | names |", "| --- | --- |"]
    pages["api/index.md"] = "\n".join([*head, *rows, ""])
    return pages


def _first_lines(module: str) -> str:
    """Summary of a module."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return text.partition("\n\n")[0]


def method_names() -> dict[str, type[Method]]:
    """All methods by name."""
    return {name: bmlr.methods.get(name) for name in bmlr.methods.available()}
