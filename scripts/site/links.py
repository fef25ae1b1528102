"""Links of the documents, which work in the repository, as links of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

#: Folder of the site for pages that show a file of the repository.
SOURCES = "source"
#: Documents at the top of the repository, and their pages.
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
TOP |= {name: name for name in ("RELEASING.md", "SECURITY.md")}
# Blocks of code, links and code in a line; the first to match takes the text, so that no link is found in code.
_TOKEN = re.compile(
    r"^```.*?^```|(?P<text>\[(?:[^\[\]`]|`[^`\n]*`)*\]\()(?P<link>[^)\s#]*)(?P<end>(?:#[^)\s]*)?\))|`[^`\n]*`",
    re.DOTALL | re.MULTILINE,
)


def _target(link: str, page: str) -> str | None:
    """Path in the repository that a link leads to, or None for a place inside the documents or on the web."""
    if not link or re.match(r"[a-z]+:", link):
        return None
    at_top = page in TOP.values()
    folder = "" if at_top else posixpath.join("docs", posixpath.dirname(page))
    target = posixpath.normpath(posixpath.join(folder, link))
    return target if at_top or not f"{target}/".startswith("docs/") else None


def repository_links(text: str, page: str) -> Iterator[str]:
    """Files of the repository, outside of the documents, that a page links to."""
    for found in _TOKEN.finditer(text):
        target = _target(found["link"] or "", page)
        if target and target not in TOP and not f"{target}/".startswith("docs/"):
            yield target


def lead_links(text: str, page: str) -> str:
    """A page with its links led to pages of the site."""
    return _TOKEN.sub(lambda found: _led(found, page), text)


def _led(found: re.Match[str], page: str) -> str:
    """A link as the site has it, to a notebook's page; code as it is."""
    target = _target(found["link"] or "", page)
    if target is None:
        return found[0].replace(".ipynb)", ".md)") if found["link"] else found[0]
    if target in TOP:
        place = TOP[target]
    elif f"{target}/".startswith("docs/"):
        place = posixpath.relpath(target, "docs").replace(".ipynb", ".md")
        place = place if "." in posixpath.basename(place) else posixpath.join(place, "README.md")
    else:
        place = f"{SOURCES}/{target}.md"
    return f"{found['text']}{posixpath.relpath(place, posixpath.dirname(page) or '.')}{found['end']}"
