"""Write ``docs/PAGE.md`` from what the commands in it have written into a folder of results.

    python scripts/results_page.py paper-tables results

The text is in ``scripts/PAGE.md.jinja``, of ``factorial``, ``results`` or ``paper-tables``. Its tables are read from
the folder, its figures are copied from there to ``docs/images``, so that no number of the page is written by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import jinja2

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


class Results:
    """The functions of the template: tables, their cells, figures and texts of a folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def table(self, name: str) -> str:
        """A table in Markdown, without its title."""
        text = self._read(f"{name}.md")
        return text.partition("\n\n")[2].strip() if text.startswith("**") else text.strip()

    def cell(self, name: str, row: str, head: str) -> str:
        """A cell of a table, without marks of the best: by the first cell of its row and the head of its column."""
        lines = [line.strip("| ").split(" | ") for line in self.table(name).splitlines() if line.startswith("| ")]
        heads = lines[0]
        found = [cells for cells in lines[2:] if cells[0] == row]
        if head not in heads or len(found) != 1:
            raise SystemExit(f"Table {name} should have the column '{head}' and one row '{row}'. It has {heads}.")
        return re.sub(r"\*\*|</?u>", "", found[0][heads.index(head)])

    def text(self, name: str) -> str:
        """A text as it is."""
        return self._read(name).strip()

    def figure(self, name: str, alternative: str, copy: str = "") -> str:
        """A figure, copied to the images of the documentation under its own name or another."""
        source = self._found(name)
        target = IMAGES / f"results-{copy or source.stem}.png"
        shutil.copyfile(source, target)
        return f"![{alternative}](images/{target.name})"

    def _read(self, name: str) -> str:
        return self._found(name).read_text(encoding="utf-8")

    def _found(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise SystemExit(f"There is no {path}: run the command of its section first.")
        return path


def page_text(page: str, folder: Path) -> str:
    """The text of a page from a folder of results."""
    results = Results(folder)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,  # noqa: S701  (Markdown, from our own files)
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    template = environment.get_template(f"{page}.md.jinja")
    return template.render(table=results.table, cell=results.cell, figure=results.figure, text=results.text)


def main() -> int:
    """Fill the template."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", choices=("factorial", "results", "paper-tables"), help="page to write")
    parser.add_argument("folder", type=Path, help="folder the commands of the page wrote into")
    options = parser.parse_args()
    (ROOT / "docs" / f"{options.page}.md").write_text(page_text(options.page, options.folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
