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
from bmlr.tables import format_count
from bmlr.tasks import metric_form, prediction_label

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


def print_scores(title: str, scores: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Print scores: the primary metric, multimodal and per modality, and its ratios."""
    from bmlr.runs import primary_score

    form = metric_form(metric)
    first = next(iter(scores.values()))
    label = prediction_label("fused") + ("" if metric == "accuracy" else f" {form.title}")
    heads = ["split", label, *primary_score(first, metric)[1], *(f"ratio {pair}" for pair in first["ratio"])]
    rows = [
        [
            name,
            form.text(primary_score(score, metric)[0]),
            *(form.text(value) for value in primary_score(score, metric)[1].values()),
            *(tables.format_mean(math.nan if v is None else v, factor=1, digits=2) for v in score["ratio"].values()),
        ]
        for name, score in scores.items()
    ]
    if len(primary_score(first, metric)[1]) > 2:  # the ratios of all pairs are too many columns for a terminal
        heads, *rows = ([*line] for line in zip(heads, *rows, strict=True))
    table = Table(*heads, title=title)
    for row in rows:
        table.add_row(*row)
    make_console(120).print(table)


def describe_samples(split: str, score: Mapping[str, Any], metric: str) -> str:
    """Number of samples, the interval of an accuracy that follows from it, and other metrics, in sentences."""
    from bmlr.diagnosis.measures import wilson_interval
    from bmlr.runs import metric_names

    samples = int(score["samples"])
    value, form = float(score[metric]), metric_form(metric)
    # Of a metric that is no share of the samples, the number of them alone tells no interval.
    interval = wilson_interval(value, samples) if metric == "accuracy" and not math.isnan(value) else None
    sentence = f"{split} split: {format_count(samples, 'sample')}, {prediction_label('fused')} {form.title} "
    sentence += form.text(value, interval) + ("" if interval is None else ", a 95 % interval")
    few = ". These are few: small differences between methods mean nothing here" if samples < _FEW_SAMPLES else ""
    others = [f"{metric_form(name).title} {metric_form(name).text(score[name])}" for name in metric_names(score)]
    more = f" {prediction_label('fused').capitalize()} {', '.join(others[1:])}." if len(others) > 1 else ""
    return f"{sentence}{few}.{more}"


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
