"""Pages of the site: every public name is in the reference, links and roles are led to it. ``make docs`` builds it."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import bmlr

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _site_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "site")


def test_every_public_name_has_a_docstring_in_the_reference() -> None:
    from pages import generated_pages, method_pages

    pages = generated_pages()
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(pages.values()), re.MULTILINE))
    shown |= {f"bmlr.methods.{name}" for name in method_pages()}
    assert set(method_pages()) == set(bmlr.methods.available())
    objects = {}
    for path in shown:
        module, _, name = path.rpartition(".")
        objects[id(getattr(importlib.import_module(module), name))] = path
    names = [info.name for info in pkgutil.walk_packages(bmlr.__path__, "bmlr.")]
    for module_name in ["bmlr", *(name for name in names if not re.search(r"\._|commands|__main__", name))]:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not name.startswith("__") and not hasattr(value, "__path__") and type(value).__name__ != "module":
                assert id(value) in objects, f"{module_name}.{name}"
    for name in bmlr.data.available():
        assert id(bmlr.data.get(name)) in objects, name


def test_links_out_of_the_documents_lead_to_pages() -> None:
    from links import lead_links, repository_links

    text = "[`A`](../../src/bmlr/batch.py) [b](../fidelity.md#x) `[c](../../d.py)` [e](../../CONTRIBUTING.md#f) [g](https://h.i)"
    assert list(repository_links(text, "methods/a.md")) == ["src/bmlr/batch.py"]
    assert lead_links(text, "methods/a.md") == (
        "[`A`](../source/src/bmlr/batch.py.md) [b](../fidelity.md#x) `[c](../../d.py)` [e](../CONTRIBUTING.md#f) "
        "[g](https://h.i)"
    )
    assert lead_links("[a](docs/data.md#b) [c](docs/methods) [d](LICENSE)", "index.md") == (
        "[a](data.md#b) [c](methods/README.md) [d](source/LICENSE.md)"
    )
    assert lead_links("[a](b.ipynb) `c.ipynb)`", "notebooks/d.md") == "[a](b.md) `c.ipynb)`"
    assert lead_links("[a](docs/notebooks/b.ipynb)", "index.md") == "[a](notebooks/b.md)"


def test_roles_of_docstrings_become_markdown() -> None:
    from roles import as_markdown

    text = (
        "Labels :math:`y` of :func:`~bmlr.wrap`:\n\n.. math::\n    a = b, \\\\\n    c\n\nMore.\n\nExample:\n    >>> 1"
    )
    assert as_markdown(text) == ("Labels $y$ of `wrap`:\n\n$$\na = b, \\\\\nc\n$$\n\nMore.\n\nExamples:\n    >>> 1")


def test_formulas_become_mathml() -> None:
    from formulas import with_mathml

    page = with_mathml(r'<p><span class="arithmatex">\(\tilde y &lt; 1\)</span></p>')
    assert "<math" in page
    assert "arithmatex" not in page


def test_the_evidence_is_that_of_the_results() -> None:
    from evidence import differences, evidence_table, shown

    from bmlr.benchmark.statistics import Difference

    assert shown(Difference(0.012, -0.016, 0.05, "seeds", (0, 1))) == "+1.2"
    assert shown(Difference(-0.05, -0.09, -0.01, "seeds", (0, 1))) == "**-5.0**"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, column in differences().items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"| {column['BMLR'].strip('*')} [" in re.findall(r"^\| \**BMLR\** \|.*$", section, re.MULTILINE)[0], name
    rows = evidence_table().splitlines()[2:]
    assert [re.findall(r"\[(\w+)\]", row)[0] for row in rows] == bmlr.methods.available()
    assert sum("–" in row for row in rows) < len(rows) / 2  # the results of most methods are found
