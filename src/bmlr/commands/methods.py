"""``bmlr methods``: the methods there are."""

from __future__ import annotations

import dataclasses
from typing import Literal

import bmlr.methods
from bmlr._console import make_console
from bmlr._files import json_text


def execute(format: Literal["table", "markdown", "json"] = "table") -> None:  # noqa: A002
    """List the methods with papers, costs, tasks and defaults.

    Example:
        bmlr methods
        bmlr methods --format markdown

    Args:
        format: Table for a terminal, markdown for documents, json for programs.
    """
    methods = [bmlr.methods.get(name) for name in bmlr.methods.available()]
    rows = [
        {
            "name": method.__name__,
            **dataclasses.asdict(method.info),
            "tasks": list(method.tasks),
            "parameters": method().hparams,
        }
        for method in methods
    ]
    if format == "json":
        print(json_text(rows))
        return
    heads = ("name", "paper", "venue", "family", "cost", "tasks", "parameters")
    for row in rows:
        row["tasks"] = ", ".join(row["tasks"])
        row["parameters"] = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
    cells = [[str(row[head]) for head in heads] for row in rows]
    if format == "markdown":
        for line in (heads, ["---"] * len(heads), *cells):
            print(f"| {' | '.join(line)} |")
        return
    from rich.table import Table  # comes with the extras, and the other formats need none

    table = Table(*heads, show_lines=True)
    for line in cells:
        table.add_row(*line)
    make_console(200).print(table)
