"""Printing shared by several commands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bmlr import tables
from bmlr._console import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from bmlr.runs import RunRecord


@dataclasses.dataclass
class DataLocation:
    """Place of the data of a run.

    Attributes:
        root: Folder of the data, if it was moved since the training.
    """

    root: Path | None = None


#: Below it the interval of an accuracy is wider than ten points either way.
_FEW_SAMPLES = 100


def print_table(table: tables.Table, console: Console) -> None:
    """Print a table."""
    grid = Table(*table.heads, title=table.title or None)
    for row in table.rows:
        grid.add_row(*(cell.text for cell in row))
    console.print(grid)


def print_scores(title: str, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print scores: accuracies, fused and per modality, and confidence ratios; other tasks' metrics."""
    first = next(iter(scores.values()))
    if metrics := first.get("metrics"):
        table = Table("split", "", *metrics["fused"], title=title)
        for split, score in scores.items():
            for name, values in score["metrics"].items():
                numbers = (math.nan if value is None else value for value in values.values())
                table.add_row(split, name, *(tables.format_mean(value, factor=1, digits=3) for value in numbers))
        make_console(120).print(table)
        return
    heads = ["split", "fused", *first["unimodal_accuracy"], *(f"ratio {pair}" for pair in first["ratio"])]
    rows = [
        [
            name,
            tables.format_percent(score["accuracy"]),
            *(tables.format_percent(value) for value in score["unimodal_accuracy"].values()),
            *(tables.format_mean(math.nan if v is None else v, factor=1, digits=2) for v in score["ratio"].values()),
        ]
        for name, score in scores.items()
    ]
    if len(first["unimodal_accuracy"]) > 2:  # the ratios of all pairs are too many columns for a terminal
        heads, *rows = ([*line] for line in zip(heads, *rows, strict=True))
    table = Table(*heads, title=title)
    for row in rows:
        table.add_row(*row)
    make_console(120).print(table)


def describe_samples(split: str, score: Mapping[str, Any]) -> str:
    """Sentence on the number of samples, and the interval of the accuracy that follows from it."""
    from bmlr.diagnosis.measures import wilson_interval

    samples = int(score["samples"])
    if score.get("metrics"):
        return f"{split} split: {samples} samples."
    interval = wilson_interval(score["accuracy"], samples)
    sentence = f"{split} split: {samples} samples, fused accuracy {tables.format_percent(score['accuracy'], interval)}"
    few = ". These are few: small differences between methods mean nothing here" if samples < _FEW_SAMPLES else ""
    return f"{sentence}, a 95 % interval{few}."


def raise_failures(records: Sequence[RunRecord]) -> None:
    """Raise a RunError if runs failed.

    A script sees it in the exit status.
    """
    from bmlr.runs import RunError

    if failed := [record for record in records if record.state == "failed"]:
        raise RunError(
            f"{len(failed)} of {len(records)} runs failed, see failed.json in {failed[0].directory}. "
            "The same command tries them again."
        )
