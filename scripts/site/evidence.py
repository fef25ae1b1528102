"""Facts of all methods, with what the results say of each."""

from __future__ import annotations

import re
from pathlib import Path

from pages import method_pages

import bmlr
from bmlr.commands.methods import describe_modalities, describe_tasks

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
_DIFFERENCE = re.compile(r"([+-][0-9.]+) \[([+-][0-9.]+), ([+-][0-9.]+)\]")


def differences(text: str) -> dict[str, dict[str, str]]:
    """Differences to joint training by data set and method; of several variants of a method, the first."""
    found: dict[str, dict[str, str]] = {}
    for section in text.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"
        ]
        heads = next((row for row in rows if "method" in row and "difference to Joint (95 %)" in row), None)
        if heads is None:
            continue
        column, name_column = heads.index("difference to Joint (95 %)"), heads.index("method")
        for row in rows:
            match = _DIFFERENCE.fullmatch(row[column]) if len(row) == len(heads) else None
            if match:
                name = re.split(r"[:@]", row[name_column].strip("*"))[0]
                value, low, high = match.groups()
                shown = f"**{value}**" if float(low) > 0 or float(high) < 0 else value
                found.setdefault(title, {}).setdefault(name, shown)
    return found


def evidence_table() -> str:
    """A Markdown table with a row per method."""
    by_data, pages = differences(RESULTS.read_text(encoding="utf-8")), method_pages()
    heads = ["method", "family", "cost of a step", "modalities", "tasks", *by_data]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * 5 + ['---:'] * len(by_data))} |"]
    for name in bmlr.methods.available():
        method = bmlr.methods.create(name)
        cells = [
            f"[{name}](methods/{pages[name]})",
            method.info.family,
            *(method.info.cost, describe_modalities(method), describe_tasks(method)),
            *(column.get(name, "–") for column in by_data.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
