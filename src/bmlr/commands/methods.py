"""``bmlr methods``: the methods there are, and the facts of one."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
from typing import Any, Literal

import bmlr.methods
from bmlr._console import make_console
from bmlr._files import json_text
from bmlr.methods import Method
from bmlr.tasks import Multiclass, MultiLabel, Regression

_TASKS = (Multiclass.name, MultiLabel.name, Regression.name)
_NUMBERS: dict[int | None, str] = {1: "one", 2: "two", 3: "three"}


def execute(
    method: Method | None = None,
    format: Literal["table", "markdown", "json"] = "table",  # noqa: A002
) -> None:
    """List the methods with families, costs, tasks and defaults.

    Example:
        bmlr methods
        bmlr methods BMLR
        bmlr methods --format markdown

    Args:
        method: Show the facts, formula and parameters of this method alone.
        format: Table for a terminal, markdown for documents, json for programs.
    """
    methods = [bmlr.methods.get(name)() for name in bmlr.methods.available()] if method is None else [method]
    if format == "json":
        rows = [_facts(each) for each in methods]
        print(json_text(rows if method is None else rows[0]))
    elif format == "markdown":
        _print_markdown(methods)
    elif method is None:
        _print_table(methods)
    else:
        _print_page(method)


def _facts(method: Method) -> dict[str, Any]:
    """Facts of a method by name."""
    return {
        "name": type(method).__name__,
        **dataclasses.asdict(method.info),
        "tasks": list(method.tasks),
        "min_modalities": method.min_modalities,
        "max_modalities": method.max_modalities,
        "allows_absent_modalities": not method.needs_all_modalities,
        "parameters": method.hparams,
    }


def describe_modalities(method: Method) -> str:
    """Number of modalities, and whether samples must have all."""
    low, high = (_NUMBERS.get(number, str(number)) for number in (method.min_modalities, method.max_modalities))
    number = f"exactly {low}" if low == high else f"{low} {'or more' if high == 'None' else f'to {high}'}"
    return f"{number}, none absent" if method.needs_all_modalities else number


def describe_tasks(method: Method) -> str:
    """Tasks that a method is defined for."""
    return "all tasks" if set(method.tasks) == {*_TASKS} else ", ".join(method.tasks)


def _parameters(method: Method) -> str:
    """Parameters as they are typed."""
    words = {None: "none", True: "true", False: "false"}
    values = {
        name: words[value] if value is None or value is True or value is False else value
        for name, value in method.hparams.items()
    }
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _print_markdown(methods: list[Method]) -> None:
    heads = ("family", "name", "paper", "venue", "cost", "tasks", "modalities", "parameters")
    print(f"| {' | '.join(heads)} |")
    print(f"| {' | '.join(['---'] * len(heads))} |")
    for method in methods:
        info = method.info
        cells = (
            *(info.family, type(method).__name__, f"[{info.paper}]({info.url})", info.venue, info.cost),
            *(describe_tasks(method), describe_modalities(method), _parameters(method)),
        )
        print(f"| {' | '.join(cells)} |")


def _print_table(methods: list[Method]) -> None:
    """Methods by family, as wide as the terminal."""
    from rich import box  # comes with the extras, and the other formats need none
    from rich.table import Table

    console = make_console(140)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), width=min(console.width, 200))
    table.add_column("method", min_width=max(len(type(method).__name__) for method in methods))
    for head, ratio in (("modalities, tasks", 3), ("cost of a step", 4), ("parameters", 5)):
        table.add_column(head, ratio=ratio, overflow="fold")
    family = ""
    for method in methods:
        if method.info.family != family:
            family = method.info.family
            table.add_row(f"\n{family.upper()}", style="bold")
        table.add_row(
            f"{type(method).__name__}\n  {method.info.venue}",
            f"{describe_modalities(method)}\n{describe_tasks(method)}",
            method.info.cost,
            _parameters(method),
        )
    console.print(table)
    console.print(
        "Samples may lack modalities, unless it says none absent. All tasks are "
        f"{', '.join(_TASKS)}.\n"
        "bmlr methods NAME shows a method's paper, formula, deviations and parameters."
    )


def _print_page(method: Method) -> None:
    """Print facts and the docstring with formula, deviations and parameters."""
    info = method.info
    rows = {
        "paper": info.paper,
        "venue": f"{info.venue}, {info.url}",
        "family": info.family,
        "cost": info.cost,
        "tasks": describe_tasks(method),
        "modalities": describe_modalities(method),
        "parameters": _parameters(method) or "none",
    }
    for name, text in rows.items():
        print(f"{name:<11} {text}")
    docstring = (inspect.getdoc(type(method)) or "").partition("\n\nRaises:")[0].partition("\n\nExample:")[0]
    docstring = re.sub(r":\w+:`~?([^`]*)`|``([^`]*)``", r"\1\2", docstring)
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    for paragraph in f"{type(method).__name__}: {docstring}".split("\n\n"):
        is_text = not re.search(r"^( |\*|\.\. )", paragraph, re.MULTILINE)
        print(f"\n{textwrap.fill(paragraph, width) if is_text else paragraph}")
