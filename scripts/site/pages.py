"""Pages that are made rather than written, and the navigation over them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from links import SOURCES, TOP
from public import api_pages, public_names

import bmlr
from bmlr.methods._types import Family

__all__ = ["SOURCES", "generated_pages", "method_pages", "navigation", "source_page"]

ROOT = Path(__file__).parents[2]
_LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", ".toml": "toml"}


def method_pages() -> dict[str, str]:
    """Page of every method, in the folder of methods."""
    pages: dict[str, str] = {}
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        head = path.read_text(encoding="utf-8").partition("\n## ")[0]
        if path.name != "README.md":
            pages |= dict.fromkeys(re.findall(r"`bmlr\.methods\.(\w+)`", head), path.name)
    return pages


def generated_pages() -> dict[str, str]:
    """Texts of the made pages by their place in the documents."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in TOP.items()}
    pages["index.md"] = f"---\nhide: [navigation]\n---\n\n{pages['index.md']}"  # it would list this page alone
    return pages | api_pages({name: f"../methods/{page}" for name, page in method_pages().items()})


def source_page(target: str) -> str:
    """A file or folder of the repository as a page."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if not child.name.startswith(("_", ".")))
        parts = [f"## {name}\n\n{_fenced(path / name)}" for name in names if (path / name).is_file()]
        return f"# {target}\n\n" + "\n\n".join(parts)
    return f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {target}\n\n{_fenced(path)}"


def _fenced(path: Path) -> str:
    if path.suffix in (".png", ".wav"):
        return f"`{path.name}`"
    return f"````{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n````"


def navigation(nav: list[Any]) -> list[Any]:
    """The navigation, with the folders of methods and of the reference filled in."""
    folders = {"methods/": _method_navigation, "api/": _api_navigation}
    return [_filled(entry, folders) for entry in nav]


def _filled(entry: Any, folders: dict[str, Any]) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if isinstance(value, list):
        return {title: [_filled(part, folders) for part in value]}
    return {title: folders[value]() if value in folders else value}


def _method_navigation() -> list[Any]:
    """Pages of methods by the family of their first method."""
    pages = method_pages()
    firsts = {page: name for name, page in reversed(pages.items())}
    families: dict[str, list[str]] = {family: [] for family in get_args(Family)}
    for page in sorted(firsts):
        families[bmlr.methods.get(firsts[page]).info.family].append(f"methods/{page}")
    named = [{family.capitalize(): paths} for family, paths in families.items() if paths]
    return ["methods/README.md", *named]


def _api_navigation() -> list[Any]:
    return ["api/index.md", *({module: f"api/{module}.md"} for module in sorted(public_names()))]
