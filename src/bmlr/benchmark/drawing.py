"""Figures of a comparison, drawn from its runs by :mod:`bmlr.figures`."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bmlr import figures
from bmlr._files import atomic_write
from bmlr.benchmark._comparison import run_frame
from bmlr.figures.style import STD, plain_text, save, set_title, shared_legend
from bmlr.runs import RunRecord, group_runs, read_metrics
from bmlr.tasks import metric_form

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = ("png", "pdf")


def draw_comparison(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Draw curves per method and bars over methods.

    Args:
        records: Runs on the same data; those that are not finished are left out.
        folder: Where the figures are written.

    Returns:
        The files.
    """
    finished = [record for record in records if record.result is not None]
    groups = group_runs(finished)
    metrics = {label: read_group(members) for label, members in groups.items()}
    about = describe(finished)
    result = finished[0].finished_result
    form = metric_form(result["metric"])
    scores = draw_panels(metrics, functools.partial(figures.plot_scores, metric=form.name))
    set_title(scores, f"{about}: validation {form.title} per epoch")
    files = save_figure(scores, folder, form.name)
    with_ratio = {
        label: runs
        for label, runs in metrics.items()
        if any("val_ratio_" in str(name) for name in next(iter(runs.values())))
    }
    if with_ratio:
        ratio = draw_panels(with_ratio, functools.partial(figures.plot_ratio, metric=form.name))
        set_title(ratio, f"{about}: {form.ratio_title} per epoch")
        files += save_figure(ratio, folder, "ratio")
    table = run_frame([record for members in groups.values() for record in members])
    axes = figures.plot_methods(table, metric=form.name, constant=result["constant_score"])
    set_title(axes.get_figure(), f"{about}: test {form.title} in the epoch selected on validation")
    return files + save_figure(axes.get_figure(), folder, "methods")


def describe(records: Sequence[RunRecord]) -> str:
    """Data set and protocol of finished runs, for a title."""
    result = records[0].finished_result
    return f"{result['data']}, {result['protocol']} protocol"


def draw_panels(
    metrics: Mapping[str, Mapping[str, pd.DataFrame]], plot: Callable[..., Axes], *, columns: int = 4
) -> Any:
    """A figure with a panel of curves per method.

    Args:
        metrics: Metrics of the runs of each method, by its label.
        plot: Draws the metrics of some runs on axes.
        columns: Panels side by side at most.
    """
    from matplotlib import pyplot as plt

    rows = -(-len(metrics) // columns)
    columns = -(-len(metrics) // rows)
    size = (3.6 * columns, 3 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for (label, runs), ax in zip(metrics.items(), axes.flat, strict=False):
        plot(runs, ax).set_title("\n".join(map(plain_text, textwrap.wrap(label, 34))), fontsize=10)
    for ax in axes.flat[len(metrics) - columns : len(metrics)] if rows > 1 else ():  # the lowest panel of each column
        ax.set_xlabel("epoch")
        ax.tick_params(axis="x", labelbottom=True)
    shared_legend(figure, list(axes.flat[: len(metrics)]), last=(STD,))
    return figure


def read_group(members: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Metrics of finished runs, by the name of their directories."""
    return {record.directory.name: read_metrics(record.directory) for record in members}


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF and close it."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{ending}" for ending in _FORMATS]
    for path, ending in zip(files, _FORMATS, strict=True):
        # The date of making is left out: the same runs give the same file.
        about = {"CreationDate": None} if ending == "pdf" else None
        atomic_write(path, lambda temporary, ending=ending, about=about: save(  # type: ignore[misc]
            figure, temporary, format=ending, dpi=150, metadata=about
        ))  # fmt: skip
    plt.close(figure)
    return files
