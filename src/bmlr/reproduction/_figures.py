"""The paper's figures, drawn from runs, with captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bmlr import figures
from bmlr._files import atomic_write_text
from bmlr.benchmark.contents import FigureFile
from bmlr.benchmark.drawing import draw_panels, read_group, save_figure
from bmlr.data import MultimodalData
from bmlr.figures.style import set_title
from bmlr.functional import smooth_labels
from bmlr.reproduction._collect import CollectedRun, collect_run, confused_classes, most_reshaped_classes, softness_of
from bmlr.reproduction._paper import FIG4_CLASSES, Experiment, Row
from bmlr.reproduction._plot_embeddings import plot_features_tsne, plot_label_tsne
from bmlr.reproduction._plot_label_rows import plot_label_rows
from bmlr.reproduction._plot_labels import plot_label_simplex
from bmlr.reproduction._plot_top_classes import count_top_classes, plot_top_classes
from bmlr.runs import RunRecord

_DRAWN = 1000  # samples of a figure of samples
_UNIFORM = "uniform, ε = 0.1"
_RATIO = "ratio of the modalities' validation accuracies per epoch"


@dataclasses.dataclass(frozen=True)
class ExperimentRuns:
    """An experiment's runs.

    Attributes:
        experiment: The experiment.
        data: The data sets, by name.
        records: The runs, by row label and data set.
    """

    experiment: Experiment
    data: Mapping[str, MultimodalData]
    records: Mapping[tuple[str, str], Sequence[RunRecord]]

    def finished(self, row: Row, data: str) -> list[RunRecord]:
        """The finished runs of a row on a data set."""
        return [record for record in self.records[row.label, data] if record.result is not None]


@dataclasses.dataclass
class DrawnFigures:
    """Figures of an experiment.

    Attributes:
        files: All files, those of numbers too.
        figures: The figures with captions.
        notes: Sentences on figures that could not be drawn.
    """

    files: list[Path] = dataclasses.field(default_factory=list)
    figures: list[FigureFile] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, figure: Any, folder: Path, name: str, caption: str) -> None:
        """Write a figure and keep its names."""
        files = save_figure(figure, folder, name)
        self.files += files
        self.figures.append(FigureFile(next(file for file in files if file.suffix == ".png"), caption))


#: Caption and drawing function of each figure, by name.
Drawings = dict[str, tuple[str, Callable[[], Any]]]


def draw_bars(made: ExperimentRuns, folder: Path) -> DrawnFigures:
    """Accuracy over the rows of a table, a figure per data set."""
    result = DrawnFigures()
    for name, data in made.data.items():
        rows = []
        for row in made.experiment.rows:
            for record in made.finished(row, name):
                score = (record.result or {})["test"]
                accuracies = {f"accuracy_{modality}": value for modality, value in score["unimodal_accuracy"].items()}
                rows.append({"method": row.label, "accuracy": score["accuracy"], **accuracies})
        if rows:
            axes = figures.plot_methods(pd.DataFrame(rows), constant=data.constant_score())
            caption = f"{made.experiment.title}: test accuracy on {name}, every run as a circle."
            title = f"{name}: {made.experiment.title}, test accuracy in the epoch selected on validation"
            set_title(axes.get_figure(), title)
            result.add(axes.get_figure(), folder, f"{made.experiment.name}-{name}", caption)
    return result


def draw_figures(made: ExperimentRuns, name: str, folder: Path) -> DrawnFigures:
    """The figures of an experiment on a data set."""
    experiment, result = made.experiment, DrawnFigures()
    groups = {row.label: made.finished(row, name) for row in experiment.rows}
    if lacking := [label for label, records in groups.items() if not records]:
        result.notes.append(f"{experiment.name} on {name} was not drawn: no run of {', '.join(lacking)} finished.")
        return result
    prefix = f"{experiment.name}-{name}"
    if experiment.name == "fig6":
        drawings = _curves(groups)
    elif experiment.name == "fig1":
        drawings = _features(groups)
    elif experiment.name == "fig3":
        drawings = _labels(groups["BMLR"], folder, prefix)
    else:
        drawings = _top_classes(groups["BMLR"], made.data[name], name)
    for kind, (caption, draw) in drawings.items():
        try:
            figure = draw()
        except ValueError as error:  # as when no label of three classes was reshaped
            result.notes.append(f"{prefix}-{kind} was not drawn: {error}")
            continue
        set_title(figure, f"{name}: {caption}")
        result.add(figure, folder, f"{prefix}-{kind}", f"{experiment.title} on {name}: {caption}.")
    result.files += sorted(folder.glob(f"{prefix}-*.csv"))
    return result


def _curves(groups: Mapping[str, Sequence[RunRecord]]) -> Drawings:
    metrics = {label: read_group(records) for label, records in groups.items()}
    accuracy = "validation accuracy per epoch"
    return {
        "accuracy": (accuracy, lambda: draw_panels(metrics, figures.plot_scores)),
        "ratio": (_RATIO, lambda: draw_panels(metrics, figures.plot_ratio)),
    }


def _features(groups: Mapping[str, Sequence[RunRecord]]) -> Drawings:
    """Features of the test split before and after, and labels after."""
    collected = {label: collect_run(records[0].directory, max_samples=_DRAWN) for label, records in groups.items()}
    drawings: Drawings = {
        f"features-{label}": (
            f"features of the test split by t-SNE, {_describe(label, groups[label][0])}",
            functools.partial(_feature_figure, run),
        )
        for label, run in collected.items()
    }
    drawings["labels"] = (
        f"training labels of three classes, {_describe('BMLR', groups['BMLR'][0])}",
        lambda: _simplex(collect_run(groups["BMLR"][0].directory, "train", max_samples=_DRAWN)),
    )
    return drawings


def _feature_figure(collected: CollectedRun) -> Any:
    return _figure_of(plot_features_tsne(collected.features, collected.targets, collected.classes))


def _labels(records: Sequence[RunRecord], folder: Path, prefix: str) -> Drawings:
    """Fractions of reshaped samples; training labels on the simplex and by t-SNE."""
    collected = collect_run(records[0].directory, "train", max_samples=_DRAWN)
    _write_labels(collected, folder / f"{prefix}-labels.csv")
    run = _describe("BMLR", records[0])
    return {
        "share": (
            "share of the training samples whose label is reshaped, per epoch and modality, BMLR",
            lambda: figures.plot_reshaped_share(read_group(records)).get_figure(),
        ),
        "ratio": (f"{_RATIO}, BMLR", lambda: figures.plot_ratio(read_group(records)).get_figure()),
        "rows": (
            f"training labels of six samples, {run}; outlined: the true class; shade: probability of the other classes",
            lambda: _label_rows(collected),
        ),
        "simplex": (f"training labels of three classes, {run}", lambda: _simplex(collected)),
        "tsne": (
            f"training labels of three classes by t-SNE, {run}",
            lambda: _figure_of(
                plot_label_tsne(
                    collected.labels or {},
                    collected.targets,
                    collected.classes,
                    classes=most_reshaped_classes(collected),
                )
            ),
        ),
    }


def _top_classes(records: Sequence[RunRecord], data: MultimodalData, name: str) -> Drawings:
    """Top-3 predicted classes of two classes, the paper's or the most confused."""
    collected = collect_run(records[0].directory)
    wanted = FIG4_CLASSES.get(name, ())
    indices = [
        next((i for i, label in enumerate(data.classes) if word.casefold() in label.casefold()), None)
        for word in wanted
    ]
    known_indices = [index for index in indices if index is not None]
    classes = known_indices if known_indices and len(known_indices) == len(wanted) else confused_classes(collected)
    top = min(3, len(collected.classes) - 1)  # among all classes every one is always found

    def draw() -> Any:
        counts = count_top_classes(collected.scores, collected.targets, top=top)
        return _figure_of(plot_top_classes(counts, collected.targets, collected.classes, classes=classes))

    run = _describe("BMLR", records[0])
    return {
        "classes": (f"classes among the top {top} of each modality, test split, {run}; hatched: the true class", draw)
    }


def _describe(label: str, record: RunRecord) -> str:
    """Method, seed and epoch of a run, for a caption."""
    result = record.finished_result
    return f"{label}, seed {result['seed']}, epoch {result['best_epoch'] + 1} of {result['epochs']}"


def _simplex(collected: CollectedRun) -> Any:
    classes = most_reshaped_classes(collected)
    return _figure_of(plot_label_simplex(collected.labels or {}, collected.targets, collected.classes, classes=classes))


def _label_rows(collected: CollectedRun) -> Any:
    """The three most reshaped labels of two classes, beside uniform ones."""
    labels, targets = collected.labels or {}, collected.targets
    classes, softness = most_reshaped_classes(collected, 2), softness_of(collected)
    samples = [
        int(row)
        for label in classes
        for row in sorted(np.flatnonzero(targets == label), key=lambda row: (-softness[row], row))[:3]
    ]
    names = [f"sample {index}" for index in collected.indices]
    return _figure_of(
        plot_label_rows(
            {_UNIFORM: _uniform_labels(collected), **labels}, targets, collected.classes, samples=samples,
            sample_names=names,
        )
    )  # fmt: skip


def _uniform_labels(collected: CollectedRun) -> Any:
    targets = torch.as_tensor(collected.targets)
    return smooth_labels(targets, len(collected.classes), epsilon=0.1, dtype=torch.float64).numpy()


def _write_labels(collected: CollectedRun, path: Path) -> None:
    """Labels of all samples, reshaped and uniformly smoothed (Fig. 3b to 3d)."""
    tables = []
    by_modality: dict[str, Any] = {**(collected.labels or {}), _UNIFORM: _uniform_labels(collected)}
    for modality, labels in by_modality.items():
        table = pd.DataFrame(np.round(labels, 6), columns=list(collected.classes))
        table.insert(0, "modality", modality)
        table.insert(0, "class", [collected.classes[target] for target in collected.targets])
        table.insert(0, "sample", collected.indices)
        tables.append(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, pd.concat(tables).to_csv(index=False))


def _figure_of(panels: Mapping[Any, Any]) -> Any:
    return next(iter(panels.values())).get_figure()
