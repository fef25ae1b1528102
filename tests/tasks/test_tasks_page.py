"""The page on tasks: its examples run as printed, its table is that of the classes."""

import contextlib
import io
import re
from pathlib import Path

import bmlr
from bmlr.methods import Method

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
TASKS = ("multiclass", "multilabel", "regression")


def row(method: type[Method]) -> str:
    cells = ["yes" if task in method.tasks else "–" for task in TASKS]
    reason = "" if set(method.tasks) == set(TASKS) else method.tasks_reason
    return "| " + " | ".join([method.__name__, *cells, reason]).rstrip() + " |"


def test_the_table_is_that_of_the_classes():
    rows = [row(bmlr.methods.get(name)) for name in bmlr.methods.available()]
    assert re.findall(r"^\| \w+ \| (?:yes|–) .*\|$", PAGE, re.MULTILINE) == rows


def test_the_examples_run_as_printed():
    names, printed = {}, io.StringIO()
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        with contextlib.redirect_stdout(printed):
            exec(example, names)  # noqa: S102  (the project's own text)
    said = re.findall(r"# (torch\.Size\([^)]*\)|[0-9. ]+$)", PAGE, re.MULTILINE)
    assert printed.getvalue().splitlines() == said
