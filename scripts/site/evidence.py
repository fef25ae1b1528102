"""Facts of all methods, with what the results say of each."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from pages import method_pages

import bmlr
from bmlr.benchmark.statistics import Difference
from bmlr.commands.methods import describe_modalities, describe_tasks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from leaderboard_kept import read_folder  # noqa: E402


def shown(difference: Difference) -> str:
    """A difference, in bold type where its interval excludes zero."""
    mean = difference.text(interval=False)
    return f"**{mean}**" if difference.side else mean


def differences() -> dict[str, dict[str, str]]:
    """Differences to joint training by data set and method; of several variants of a method, the first."""
    content = yaml.safe_load((BENCHMARKS / "leaderboard.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for kept in read_folder(BENCHMARKS / "leaderboard", list(content["sets"])):
        column = found.setdefault(kept.name, {})
        for label, difference in kept.differences(content["baseline"]).items():
            column.setdefault(label.partition(":")[0], shown(difference))
    return found


def evidence_table() -> str:
    """A Markdown table with a row per method."""
    by_data, pages = differences(), method_pages()
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
