"""The notebooks of the documentation: their cells run without a warning, and what they printed and drew is kept."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if path.stem == "compare-methods-fairly" else path
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_the_cells_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    names: dict = {"__name__": "notebook"}
    sources = "\n\n".join(cell.source for cell in cells(path, "code"))
    exec(compile(sources, path.name, "exec"), names)  # noqa: S102  (the project's own text)
    assert len(drawn) == 1
    assert drawn[0].axes[0].has_data()
    plt.close("all")


@each_notebook
def test_what_the_cells_gave_is_kept(path):
    """By ``make notebooks``: all cells in order, a figure, no error, no path of a machine."""
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert not [output for output in outputs if output.output_type == "error"]
    printed = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"Warning|/(home|root|tmp|work)/", printed)
    assert path.stat().st_size < 100_000


@each_notebook
def test_what_the_last_line_of_a_cell_gives_is_shown(path):
    for cell in cells(path, "code"):
        if isinstance(ast.parse(cell.source).body[-1], ast.Expr) and "print" not in cell.source:
            assert cell.outputs, cell.source


def test_a_notebook_becomes_a_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "site")
    from notebooks import as_page

    code = nbformat.v4.new_code_cell("draw()")
    code.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a < b\n\nc\n"),
        nbformat.v4.new_output("display_data", data={"image/png": "aGVsbG8=", "text/plain": "<Figure>"}),
        nbformat.v4.new_output("execute_result", data={"text/markdown": "| a |", "text/plain": "<M>"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A\n\n[b](b.ipynb)"), code])
    page, pictures = as_page(notebook, "a.ipynb")
    assert page.startswith("# A\n\nDownload ")
    assert "[b](b.ipynb)" in page  # led to a page as all links are
    assert "```python\ndraw()\n```" in page
    assert '<pre class="printed">a &lt; b&#10;&#10;c</pre>' in page
    assert "![Figure drawn by the lines above](a-1.png)\n\n| a |" in page
    assert pictures == {"a-1.png": b"hello"}
    del sys.modules["notebooks"]
