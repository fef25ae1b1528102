"""Accuracy per class and confusions, from the runs' stored predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmlr.benchmark.statistics import estimate
from bmlr.report._sections import MethodGroup, Section
from bmlr.runs import read_predictions
from bmlr.tables import Cell, Table, format_mean, mark_best
from bmlr.tasks import prediction_label

#: Classes up to which confusions are a matrix; of more, the most frequent are listed.
MATRIX_CLASSES = 25
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class MethodClasses:
    """Classes of one method.

    Attributes:
        label: The method.
        search: Text that the filter searches.
        accuracy: A row per class: multimodal accuracy and that of each modality.
        confusion: A row per true class and a column per predicted class, or the most frequent confusions.
        is_matrix: Whether the confusions are a matrix.
    """

    label: str
    search: str
    accuracy: Table
    confusion: Table
    is_matrix: bool


@dataclasses.dataclass(frozen=True)
class ClassTables:
    """Classes of a section.

    Attributes:
        accuracy: A row per class, a column per method; None without any predictions.
        methods: The methods that have predictions.
        missing: The other methods, each with the reason.
    """

    accuracy: Table | None
    methods: Sequence[MethodClasses]
    missing: Sequence[tuple[str, str]]


def make_class_tables(section: Section) -> ClassTables:
    """Make the class tables of all methods with predictions; none where targets are no classes."""
    if section.form.name != "accuracy":
        return ClassTables(None, (), ())
    predictions: dict[str, list[dict[str, NDArray[Any]]]] = {}
    missing = []
    for group in section.groups:
        try:
            predictions[group.label] = [read_predictions(run.directory) for run in group.runs]
        except (OSError, ValueError) as error:
            missing.append((group.label, " ".join(str(error).split())))
    if not predictions:
        return ClassTables(None, (), missing)
    first = next(iter(predictions.values()))[0]
    arrays = [values for tables in predictions.values() for table in tables for values in table.values()]
    number = 1 + max(int(values.max()) for values in arrays)
    names = _class_names(section, number)
    counts = np.bincount(first["targets"][first["targets"] >= 0], minlength=len(names))
    columns = {label: _accuracy_cells(tables, "fused", len(names)) for label, tables in predictions.items()}
    rows = [
        [Cell(name, value=index), Cell(str(counts[index]), value=int(counts[index])),
         *mark_best([cells[index] for cells in columns.values()])]
        for index, name in enumerate(names)
    ]  # fmt: skip
    heads = ["Class", "Samples", *(f"{label} (%)" for label in columns)]
    groups = {group.label: group for group in section.groups}
    methods = [_method_classes(groups[label], section, tables, names) for label, tables in predictions.items()]
    return ClassTables(Table(heads, rows, title="Accuracy by class"), methods, missing)


def _method_classes(
    group: MethodGroup, section: Section, tables: Sequence[dict[str, NDArray[Any]]], names: Sequence[str]
) -> MethodClasses:
    kinds = ["fused", *(name for name in section.modalities if all(name in table for table in tables))]
    columns = [("Class", [Cell(name, value=index) for index, name in enumerate(names)])]
    columns += [
        (f"{(label := prediction_label(kind))[:1].upper()}{label[1:]} (%)", _accuracy_cells(tables, kind, len(names)))
        for kind in kinds
    ]
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for table in tables:
        counted = table["targets"] >= 0
        np.add.at(counts, (table["targets"][counted], table["fused"][counted]), 1)
    accuracy = Table.from_columns(columns, title=f"{group.label}, accuracy by class")
    is_matrix = len(names) <= MATRIX_CLASSES
    confusion = (_matrix if is_matrix else _frequent)(counts, names, group.label)
    return MethodClasses(group.label, group.search, accuracy, confusion, is_matrix)


def _accuracy_cells(tables: Sequence[dict[str, NDArray[Any]]], kind: str, number: int) -> list[Cell]:
    """Accuracy of each class, mean ± std over runs.

    Samples that lack the modality do not count.
    """
    cells = []
    for index in range(number):
        values = []
        for table in tables:
            predicted = table[kind][table["targets"] == index]
            predicted = predicted[predicted >= 0]
            values.append(float((predicted == index).mean()) if len(predicted) else None)
        mean = estimate(values)
        cells.append(
            Cell(format_mean(mean.mean, mean.std), value=100 * mean.mean) if mean.runs else Cell("–", note="no sample")
        )
    return cells


def _matrix(counts: NDArray[Any], names: Sequence[str], label: str) -> Table:
    sizes = np.maximum(counts.sum(axis=1), 1)
    rows = [
        [Cell(name, value=index)]
        + [Cell(f"{100 * count / sizes[index]:.1f}", value=100 * count / sizes[index], note=f"{count} predictions")
           for count in counts[index]]
        for index, name in enumerate(names)
    ]  # fmt: skip
    return Table(["True class", *names], rows, title=f"{label}, confusion matrix")


def _frequent(counts: NDArray[Any], names: Sequence[str], label: str) -> Table:
    confused = counts - np.diag(np.diag(counts))
    sizes = np.maximum(counts.sum(axis=1), 1)
    order = np.argsort(-confused, axis=None, kind="stable")[:_LISTED]
    rows = []
    for true, predicted in zip(*np.unravel_index(order, confused.shape), strict=True):
        count = int(confused[true, predicted])
        if count:
            share = 100 * count / sizes[true]
            cells = [Cell(names[true], value=int(true)), Cell(names[predicted]), Cell(str(count), value=count)]
            rows.append([*cells, Cell(f"{share:.1f}", value=share)])
    heads = ["True class", "Predicted as", "Predictions", "Of the class (%)"]
    return Table(heads, rows, title=f"{label}, most frequent confusions")


def _class_names(section: Section, number: int) -> list[str]:
    """Recorded names of the classes, or "class 0" and so on."""
    recorded = section.groups[0].runs[0].finished_result.get("classes")
    if isinstance(recorded, list) and len(recorded) >= number:
        return [str(name) for name in recorded]
    return [f"class {index}" for index in range(number)]
