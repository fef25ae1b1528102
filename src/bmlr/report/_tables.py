"""Tables of methods and of runs of a section."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from bmlr.benchmark.references import reference_note, references
from bmlr.benchmark.statistics import Difference, estimate
from bmlr.report._differences import Differences, differences_to
from bmlr.report._sections import MethodGroup, Section, seeds_text
from bmlr.runs import RunRecord
from bmlr.tables import Cell, Table, format_mean, leading_number, mark_best
from bmlr.tasks import MetricForm, metric_form, prediction_label

#: Reads a number of a run; None where it is not defined.
Read = Callable[[RunRecord], float | None]


def method_table(section: Section, baseline: MethodGroup | None, differences: Differences) -> Table:
    """Mean ± std over seeds of every method, the best two marked.

    Args:
        section: The section.
        baseline: The method that the differences are to; None leaves them out.
        differences: Differences of the other methods to it.
    """
    columns: list[tuple[str, list[Cell]]] = []
    notes: dict[str, str] = {}

    def add(head: str, note: str, cells: list[Cell]) -> None:
        columns.append((head, cells))
        notes[head] = note

    groups = section.groups
    add("Method", "", [_name_cell(group.label) for group in groups])
    add("Runs", "Number of runs, which differ in the seed alone", [_runs_cell(group) for group in groups])
    form = section.form
    for head, note, read in _score_columns(section, "test"):
        add(head, note, mark_best([_score_cell(group, read, form) for group in groups], form.goodness))
    for pair in section.pairs:
        cells = [_mean_cell(group, _reader("test", "ratio", pair), 1, 2) for group in groups]
        note = "Quotient of the modalities' scores; 1 is balanced, above it the first is ahead"
        add(f"Ratio {pair}", note, mark_best(cells, _closeness_to_one))
    if baseline is not None and len(groups) > 1:
        note = (
            f"Multimodal {form.title} less that of the other method{', in points' if form.is_rate else ''}: mean, and "
            "95 % bootstrap interval over the seeds "
            "both have and the test samples. Three seeds tell little of the spread between seeds: the interval is "
            "rather too narrow"
        )
        cells = [_difference_cell(differences.get(group.label)) for group in groups]
        add(f"Difference to {baseline.label} (95 %)", note, cells)
    for name, label in references({group.label: group.runs for group in groups}).items():
        (reference,) = (group for group in groups if group.label == label)
        over = differences_to(section, reference)
        note = f"{reference_note(name, label)} Difference of the multimodal {form.title}, as that to a baseline"
        add(f"Over the {name} (95 %)", note, [_difference_cell(over.get(group.label)) for group in groups])
    if any("test_last_epoch" in run.finished_result for group in groups for run in group.runs):
        for split, (head, note) in _PAPER_COLUMNS.items():
            cells = [_score_cell(group, _reader(split, form.name), form) for group in groups]
            add(form.head(head), note, cells)
    passes = [_mean_cell(group, _reader("data_passes"), 1, 1, std=False) for group in groups]
    add("Data passes", "Samples seen in training, over the size of the training split", passes)
    minutes = [_mean_cell(group, _reader("seconds"), 1 / 60, 1, std=False) for group in groups]
    add("Minutes", "Wall-clock time of a run, on whatever machine it ran", minutes)
    return Table.from_columns(columns, head_notes=notes)


def metric_table(section: Section) -> Table | None:
    """All metrics of the multimodal prediction of every method, mean ± std over seeds; None where there is but one."""
    if len(section.metrics) < 2:
        return None
    columns = [("Method", [_name_cell(group.label) for group in section.groups])]
    notes = {}
    for form in map(metric_form, section.metrics):
        cells = [_score_cell(group, _reader("test", form.name), form) for group in section.groups]
        head = f"{form.heading}{' (%)' if form.is_rate else ''}"
        columns.append((head, mark_best(cells, form.goodness)))
        notes[head] = "larger is better" if form.larger_is_better else "smaller is better"
    return Table.from_columns(columns, ["Multimodal prediction on the test split."], "Metrics", notes)


def run_table(section: Section) -> Table:
    """A row per run, in the order of the groups."""
    scores = _score_columns(section, "test")
    form = section.form
    selected = form.head("Validation")
    heads = ["Method", "Seed", *(head for head, _, _ in scores), *(f"Ratio {pair}" for pair in section.pairs)]
    notes = {head: note for head, note, _ in scores} | {
        selected: "Multimodal score on the validation split, in the selected epoch",
        "Epoch": "The epoch selected on validation, and the number of epochs",
    }
    rows = []
    for group in section.groups:
        for run in group.runs:
            result = run.finished_result
            row = [_name_cell(group.label), Cell(str(result["seed"]), value=result["seed"])]
            row += [_number_cell(read(run), form.factor, form.digits) for _, _, read in scores]
            row += [_number_cell(_reader("test", "ratio", pair)(run), 1, 2) for pair in section.pairs]
            epoch = result["best_epoch"] + 1
            row += [
                _number_cell(_reader("validation", form.name)(run), form.factor, form.digits),
                Cell(f"{epoch} of {result['epochs']}", value=epoch),
                _number_cell(result["seconds"], 1 / 60, 1),
            ]
            rows.append(row)
    return Table([*heads, selected, "Epoch", "Minutes"], rows, head_notes=notes)


def sortable(table: Table) -> Table:
    """A written table, sortable by the leading numbers of its cells."""
    rows = [
        [
            _name_cell(cell.text) if index == 0 else dataclasses.replace(cell, value=leading_number(cell.text))
            for index, cell in enumerate(row)
        ]
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows)


_PAPER_COLUMNS = {
    "test_last_epoch": ("Last epoch", "Multimodal score on the test split after the last epoch"),
    "test_best_epoch": (
        "Best on test",
        "Best multimodal test score of all epochs: selected on the test split, hence optimistic",
    ),
}


def _score_columns(section: Section, split: str) -> list[tuple[str, str, Read]]:
    """Head, explanation and reader of the primary metric, multimodal and by modality."""
    form = section.form
    title = form.heading
    better = "" if form.larger_is_better else "; smaller is better"
    note = f"{title} of the multimodal prediction on the test split{better}"
    columns = [(form.head(prediction_label("fused").capitalize()), note, _reader(split, form.name))]
    for name in section.modalities:
        note = f"{title} of the logits of {name} alone, over the samples that have it{better}"
        columns.append(
            (form.head(f"{name[:1].upper()}{name[1:]}"), note, _reader(split, f"unimodal_{form.name}", name))
        )
    return columns


def _reader(*keys: str) -> Read:
    def read(run: RunRecord) -> float | None:
        value: Any = run.result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None or math.isnan(value) else float(value)

    return read


def _name_cell(name: str) -> Cell:
    return Cell(name, value=name.casefold())


def _mean_cell(group: MethodGroup, read: Read, factor: float, digits: int, *, std: bool = True) -> Cell:
    """Mean over a group's runs, with a note on undefined values."""
    values = [value for value in map(read, group.runs) if value is not None]
    if not values:
        return Cell("–", note="not defined in any run")
    mean = estimate(values)
    text = format_mean(mean.mean, mean.std if std else None, factor=factor, digits=digits)
    if not std:
        text = text.removesuffix(".0")
    missing = len(values) < len(group.runs)
    note = f"over the {len(values)} of {len(group.runs)} runs where it is defined" if missing else ""
    return Cell(f"{text}*" if missing else text, value=factor * mean.mean, note=note)


def _score_cell(group: MethodGroup, read: Read, form: MetricForm) -> Cell:
    return _mean_cell(group, read, form.factor, form.digits)


def _number_cell(value: float | None, factor: float, digits: int) -> Cell:
    return Cell("–") if value is None else Cell(f"{factor * value:.{digits}f}", value=factor * value)


def _difference_cell(difference: Difference | str | None) -> Cell:
    if difference is None:  # the baseline itself
        return Cell("0", value=0.0)
    if isinstance(difference, str):
        return Cell("–", note=difference)
    note = f"resampled over {difference.over}; {seeds_text(difference.seeds)}"
    return Cell(difference.text(), value=metric_form(difference.metric).factor * difference.mean, note=note)


def _runs_cell(group: MethodGroup) -> Cell:
    return Cell(str(len(group.runs)), value=len(group.runs), note=seeds_text(group.seeds))


def _closeness_to_one(value: float) -> float:
    return -abs(math.log(value)) if value > 0 else -math.inf
