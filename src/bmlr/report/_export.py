"""Tables as text to copy and to save."""

from __future__ import annotations

import csv
import io
import re

from bmlr.tables import Table

_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_FORM = re.compile(rf"({_NUMBER})\*?(?: ± ({_NUMBER}))?(?: \[({_NUMBER}), ({_NUMBER})\])?")
_PARTS = (("", 1), (" std", 2), (" low", 3), (" high", 4))


def export_table(table: Table, name: str) -> dict[str, str]:
    """File name and texts of a table, for the page's script."""
    stem = re.sub(r"[^0-9A-Za-z]+", "-", name).strip("-").lower() or "table"
    return {"name": stem, "csv": csv_text(table), "tex": table.latex() + "\n"}


def csv_text(table: Table) -> str:
    """A table as CSV.

    Standard deviations and ends of intervals have columns of their own.

    Example:
        >>> from bmlr.tables import Cell
        >>> print(csv_text(Table(["method", "multimodal (%)"], [[Cell("Joint"), Cell("71.2 ± 0.4")]])), end="")
        method,multimodal (%),multimodal (%) std
        Joint,71.2,0.4
    """
    columns: list[list[str]] = []
    for index, head in enumerate(table.heads):
        texts = [row[index].text for row in table.rows]
        forms = [_FORM.fullmatch(text) for text in texts]
        if index == 0 or any(form is None and text != "–" for form, text in zip(forms, texts, strict=True)):
            columns.append([head, *texts])
            continue
        for suffix, group in _PARTS:
            values = [(form[group] or "") if form else "" for form in forms]
            if group == 1 or any(values):
                columns.append([f"{head}{suffix}", *values])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()
