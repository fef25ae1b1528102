"""Contents of a folder of tables and figures, for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmlr._files import atomic_write_text, json_text, parse_json
from bmlr.tables import Cell, Table

CONTENTS = "contents.json"


@dataclasses.dataclass(frozen=True)
class FigureFile:
    """A figure in a folder of results.

    Attributes:
        file: The PNG.
        caption: What it shows.
    """

    file: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Contents:
    """Tables and figures in their order on the page.

    Attributes:
        title: What they are about.
        items: The tables and figures.
        notes: Sentences on what is missing.
    """

    title: str
    items: Sequence[Table | FigureFile]
    notes: Sequence[str] = ()


def write_contents(contents: Contents, folder: Path) -> Path:
    """Write ``contents.json``, with figures relative to the folder."""

    def plain(item: Table | FigureFile) -> dict[str, Any]:
        if isinstance(item, FigureFile):
            return {"figure": item.file.relative_to(folder).as_posix(), "caption": item.caption}
        rows = [[dataclasses.asdict(cell) for cell in row] for row in item.rows]
        return {"table": item.title, "heads": list(item.heads), "rows": rows, "notes": list(item.notes)}

    content = {"title": contents.title, "items": list(map(plain, contents.items)), "notes": list(contents.notes)}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / CONTENTS, json_text(content, indent=1) + "\n")
    return folder / CONTENTS


def read_contents(folder: Path) -> Contents:
    """Read ``contents.json``.

    Raises:
        FileNotFoundError: If the folder or a figure is missing.
        ValueError: If the file is cut off, not what it should be, or names a figure outside its folder.
    """
    path = folder / CONTENTS
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {CONTENTS} in {folder}: it should be the folder that bmlr reproduce or tune wrote into."
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        items = [_item(item, folder) for item in content["items"]]
        return Contents(_text(content["title"]), items, [_text(note) for note in content["notes"]])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is cut off or not what it should be ({type(error).__name__}: {reason}).") from error


def _item(item: dict[str, Any], folder: Path) -> Table | FigureFile:
    if "figure" in item:
        file = (folder / _text(item["figure"])).resolve()
        if not file.is_relative_to(folder.resolve()) or file.suffix.lower() != ".png":
            raise ValueError(f"a figure should be a PNG in the folder, found {item['figure']!r}")
        if not file.is_file():
            raise FileNotFoundError(f"There is no figure {file}, which {folder / CONTENTS} names.")
        return FigureFile(file, _text(item["caption"]))
    heads = [_text(head) for head in item["heads"]]
    rows = [[Cell(_text(cell["text"]), _mark(cell["mark"])) for cell in row] for row in item["rows"]]
    if any(len(row) != len(heads) for row in rows):
        raise ValueError("a row of a table has not as many cells as there are heads")
    return Table(heads, rows, [_text(note) for note in item["notes"]], _text(item["table"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, found {value!r}")
    return value


def _mark(value: Any) -> Any:
    if value not in {"", "best", "second"}:
        raise ValueError(f"a mark should be best, second or empty, found {value!r}")
    return value
