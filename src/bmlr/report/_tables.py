"""The tables of a section: mean and deviation over seeds by method, and every run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from bmlr.benchmark._tables import Table
from bmlr.benchmark.statistics import difference_of, estimate
from bmlr.report._sections import MethodGroup, Section, seeds_text
from bmlr.runs import RunRecord

#: Reads a number of a run; None where it is not defined.
Read = Callable[[RunRecord], float | None]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is shown.
        value: What is sorted by; None goes last.
        mark: best, second or "".
        note: What there is to say about the number, or "".
    """

    text: str
    value: float | str | None = None
    mark: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Head:
    """Head of a column: its text, an explanation, and whether it holds numbers."""

    text: str
    note: str = ""
    numeric: bool = True


def method_table(section: Section, baseline: MethodGroup | None = None) -> tuple[list[Head], list[list[Cell]]]:
    """Mean ± standard deviation over the seeds of every method, the best and the second marked.

    Args:
        section: The section.
        baseline: The method that the others' differences are to; None leaves the differences out.
    """
    columns: list[tuple[Head, list[Cell]]] = []

    def add(head: Head, cells: list[Cell]) -> None:
        columns.append((head, cells))

    groups = section.groups
    add(Head("Method", numeric=False), [Cell(group.label, group.label.casefold()) for group in groups])
    add(Head("Runs", "Number of runs, which differ in the seed alone"), [_runs_cell(group) for group in groups])
    for head, read in _score_columns(section, "test"):
        add(head, _mark([_spread(group, read, 100, 1) for group in groups]))
    for pair in section.pairs:
        head = Head(f"Ratio {pair}", "Quotient of the modalities' accuracies; 1 is balanced")
        cells = [_spread(group, _reader("test", "ratio", pair), 1, 2) for group in groups]
        add(head, _mark(cells, _distance_from_one))
    if baseline is not None and len(groups) > 1:
        head = Head(
            f"Difference to {baseline.label} (95 %)",
            "Fused accuracy less that of the other method, in points: mean, and 95 % bootstrap interval over the seeds "
            "both have and the test samples. Three seeds tell little of the spread between seeds: the interval is "
            "rather too narrow",
        )
        add(head, [_difference_cell(group, baseline) for group in groups])
    if any("test_last_epoch" in run.finished_result for group in groups for run in group.runs):
        for split, head in _PAPER_COLUMNS.items():
            add(head, [_spread(group, _reader(split, "accuracy"), 100, 1) for group in groups])
    passes = [_spread(group, _reader("data_passes"), 1, 1, deviation=False) for group in groups]
    add(Head("Data passes", "Samples seen in training, over the size of the training split"), passes)
    minutes = [_spread(group, _reader("seconds"), 1 / 60, 1, deviation=False) for group in groups]
    add(Head("Minutes", "Wall-clock time of a run, on whatever machine it ran"), minutes)
    return [head for head, _ in columns], [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def run_table(section: Section) -> tuple[list[Head], list[list[Cell]]]:
    """A row per run, in the order of the groups."""
    heads = [Head("Method", numeric=False), Head("Seed"), *(head for head, _ in _score_columns(section, "test"))]
    heads += [Head(f"Ratio {pair}") for pair in section.pairs]
    heads += [
        Head("Validation (%)", "Fused accuracy on the validation split, by which the epoch was selected"),
        Head("Epoch", "The epoch selected on validation, and the number of epochs"),
        Head("Minutes"),
    ]
    rows = []
    for group in section.groups:
        for run in group.runs:
            result = run.finished_result
            row = [Cell(group.label, group.label.casefold()), Cell(str(result["seed"]), result["seed"])]
            row += [_plain(read(run), 100, 1) for _, read in _score_columns(section, "test")]
            row += [_plain(_reader("test", "ratio", pair)(run), 1, 2) for pair in section.pairs]
            epoch = result["best_epoch"] + 1
            row += [
                _plain(result["validation"]["accuracy"], 100, 1),
                Cell(f"{epoch} of {result['epochs']}", epoch),
                _plain(result["seconds"], 1 / 60, 1),
            ]
            rows.append(row)
    return heads, rows


def shown_table(table: Table) -> tuple[list[Head], list[list[Cell]]]:
    """A table that was written before, to be sorted by the numbers its cells begin with."""
    heads = [Head(text, numeric=place > 0) for place, text in enumerate(table.heads)]
    rows = [
        [
            Cell(cell.text, cell.text.casefold() if place == 0 else _leading_number(cell.text), cell.mark)
            for place, cell in enumerate(row)
        ]
        for row in table.rows
    ]
    return heads, rows


def _leading_number(text: str) -> float | None:
    found = re.match(r"[+-]?[0-9]+(\.[0-9]+)?", text)
    return float(found[0]) if found else None


_PAPER_COLUMNS = {
    "test_last_epoch": Head("Last epoch (%)", "Fused accuracy on the test split after the last epoch"),
    "test_best_epoch": Head(
        "Best on test (%)", "Largest fused test accuracy of all epochs: selected on the test split, hence optimistic"
    ),
}


def _score_columns(section: Section, split: str) -> list[tuple[Head, Read]]:
    columns = [(Head("Fused (%)", "Accuracy of the fused prediction on the test split"), _reader(split, "accuracy"))]
    for name in section.modalities:
        head = Head(
            f"{name[:1].upper()}{name[1:]} (%)",
            f"Accuracy of the logits of {name} alone, over the samples that have it",
        )
        columns.append((head, _reader(split, "unimodal_accuracy", name)))
    return columns


def _reader(*keys: str) -> Read:
    def read(run: RunRecord) -> float | None:
        value: Any = run.result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None or math.isnan(value) else float(value)

    return read


def _spread(group: MethodGroup, read: Read, factor: float, digits: int, *, deviation: bool = True) -> Cell:
    found = [read(run) for run in group.runs]
    values = [factor * value for value in found if value is not None]
    if not values:
        return Cell("–", None, note="not defined in any run")
    mean = estimate(values)
    text = f"{mean.mean:.{digits}f}"
    if deviation and mean.std is not None:
        text += f" ± {mean.std:.{digits}f}"
    elif not deviation:
        text = text.removesuffix(".0")
    note = "" if len(values) == len(found) else f"over the {len(values)} of {len(found)} runs where it is defined"
    return Cell(text + ("*" if note else ""), mean.mean, note=note)


def _plain(value: float | None, factor: float, digits: int) -> Cell:
    return Cell("–", None) if value is None else Cell(f"{factor * value:.{digits}f}", factor * value)


def _difference_cell(group: MethodGroup, baseline: MethodGroup) -> Cell:
    if group is baseline:
        return Cell("0", 0.0)
    try:
        found = difference_of(group.runs, baseline.runs)
    except (OSError, ValueError) as error:
        return Cell("–", None, note=" ".join(str(error).split()))
    if found is None:
        return Cell("–", None, note="no seed in common")
    return Cell(found.text(), 100 * found.mean, note=f"resampled over {found.over}; {seeds_text(found.seeds)}")


def _runs_cell(group: MethodGroup) -> Cell:
    return Cell(str(len(group.runs)), len(group.runs), note=seeds_text(group.seeds))


def _distance_from_one(value: float) -> float:
    return -abs(math.log(value)) if value > 0 else -math.inf


def _mark(cells: list[Cell], goodness: Callable[[float], float] = float) -> list[Cell]:
    """Mark the best and the second of what is shown: means that look the same rank the same."""
    shown = {
        index: round(goodness(float(cell.text.partition(" ")[0].rstrip("*"))), 9)
        for index, cell in enumerate(cells)
        if cell.value is not None
    }
    ranks = sorted(set(shown.values()), reverse=True)
    if len(ranks) < 2:
        return cells
    # Several that share the first place leave no second.
    second = ranks[1] if list(shown.values()).count(ranks[0]) == 1 else None
    return [
        dataclasses.replace(cell, mark="best" if shown.get(i) == ranks[0] else "second" if second is not None
                            and shown.get(i) == second else "")
        for i, cell in enumerate(cells)
    ]  # fmt: skip
