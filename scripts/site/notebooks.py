"""Notebooks, with what they printed and drew, as pages."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


def notebook_pages() -> tuple[dict[str, str], dict[str, bytes]]:
    """Texts and pictures of all notebooks by their place in the documents."""
    pages: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, drawn = as_page(nbformat.read(path, as_version=4), path.name)
        pages[f"notebooks/{path.stem}.md"] = text
        pictures |= {f"notebooks/{name}": content for name, content in drawn.items()}
    return pages, pictures


def as_page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures by file name.

    Example:
        >>> cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("1 + 1")]
        >>> as_page(nbformat.v4.new_notebook(cells=cells), "a.ipynb")[0].splitlines()[0]
        '# A'
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts.extend(_shown(output, name, pictures) for output in cell.outputs)
    title, _, rest = "\n\n".join(parts).partition("\n\n")
    link = f'Download <a href="{name}" download>{name}</a> and run it in Jupyter.'
    return f"{title}\n\n{link}\n\n{rest}\n", pictures


def _shown(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    """What a cell printed, drew or returned; a picture goes into ``pictures``."""
    if output.output_type == "stream":
        return _printed(output.text)
    if "image/png" in output.data:
        picture = f"{Path(name).stem}-{len(pictures) + 1}.png"
        pictures[picture] = base64.b64decode(output.data["image/png"])
        return f"![Figure drawn by the lines above]({picture})"
    if "text/markdown" in output.data:
        return str(output.data["text/markdown"])
    return _printed(output.data["text/plain"])


def _printed(text: str) -> str:
    return f'<pre class="printed">{html.escape(text.rstrip())}</pre>'.replace("\n", "&#10;")
