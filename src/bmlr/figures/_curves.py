"""Curves over epochs: scores, ratio of scores, share of reshaped labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bmlr.figures.style import STD, add_legend, drop_inner_labels, look, open_panel, plain_text, ratio_ticks, tidy
from bmlr.tasks import metric_form, prediction_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Metrics of one run, or of several (seeds, say) by name.
Metrics = pd.DataFrame | Mapping[str, pd.DataFrame]


def plot_scores(metrics: Metrics, ax: Axes | None = None, *, metric: str = "accuracy", **line: Any) -> Axes:
    """A validation metric per epoch, multimodal and by modality (Fig. 6).

    Args:
        metrics: Metrics of a run as :func:`bmlr.runs.read_metrics` gives them; or of several runs by name (seeds),
            of which the mean is drawn, with a band of one sample standard deviation.
        ax: Where to draw; a new figure if left out.
        metric: Name of the metric.
        **line: Further properties of the lines.

    Raises:
        ValueError: If there is no such metric among the metrics, or the runs differ in columns or epochs.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.4, 0.6], "val_accuracy_audio": [0.3, 0.5]})
        >>> [line.get_label() for line in plot_scores(table).get_lines()]
        ['multimodal', 'audio']
    """
    runs = _runs(metrics)
    prefix, form = f"val_{metric}", metric_form(metric)
    columns = [name for name in _columns(runs, prefix) if name == prefix or name.startswith(f"{prefix}_")]
    ax = open_panel(ax)
    for number, name in enumerate(columns):
        label = plain_text(prediction_label(name.removeprefix(prefix).removeprefix("_") or "fused"))
        _draw(ax, runs, name, form.factor, **{"label": label, **look(number), **line})
    ax.set(ylabel=f"validation {form.label}", **({"ylim": (0, 102)} if form.is_rate else {}))
    return _finish(ax)


def plot_ratio(metrics: Metrics, ax: Axes | None = None, *, metric: str = "accuracy", **line: Any) -> Axes:
    """Ratio of the modalities' validation scores per epoch (the paper's A/V ratio).

    At 1 the modalities are balanced.

    The axis is logarithmic: 2 and 1/2 are as far from balance.

    Args:
        metrics: Metrics of a run, or of several by name, as :func:`plot_scores` takes them.
        ax: Where to draw; a new figure if left out.
        metric: Name of the metric that is compared.
        **line: Further properties of the lines.

    Raises:
        ValueError: If there is no ratio among the metrics, or the runs differ in columns or epochs.

    Example:
        >>> import pandas as pd
        >>> plot_ratio(pd.DataFrame({"epoch": [0, 1], "val_ratio_audio_image": [2.0, 1.2]})).get_yscale()
        'log'
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    runs = _runs(metrics)
    columns = _columns(runs, "val_ratio_")
    ax = open_panel(ax)
    pairs = _pairs(runs[0], metric)
    shown = [np.array([1.0])]
    for number, name in enumerate(columns, start=1):  # the multimodal prediction's look is not used here
        label = plain_text(pairs.get(name, name.removeprefix("val_ratio_")))
        mean, spread = _draw(ax, runs, name, 1, **{"label": label, **look(number), **line})
        shown += [mean, mean + spread, mean - spread]
    ax.axhline(1, color="0.4", linewidth=0.8, zorder=1, label="balanced (1)")
    values = np.concatenate(shown)
    values = values[np.isfinite(values) & (values > 0)]
    low, high = float(min(values.min(), 0.8) / 1.12), float(max(values.max(), 1.25) * 1.12)
    # Panels of one axis: the last one's range would cut the curves of those before it.
    if any(other is not ax and other.has_data() for other in ax.get_shared_y_axes().get_siblings(ax)):
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    ax.set(ylabel=metric_form(metric).ratio_title, yscale="log", ylim=(low, high))
    ax.yaxis.set_major_locator(FixedLocator(ratio_ticks(low, high)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return _finish(ax)


def plot_reshaped_share(metrics: Metrics, ax: Axes | None = None, **line: Any) -> Axes:
    """Fraction of reshaped training labels per epoch and modality (Fig. 3a).

    Args:
        metrics: Metrics of a run, or of several by name, as :func:`plot_scores` takes them.
        ax: Where to draw; a new figure if left out.
        **line: Further properties of the lines.

    Raises:
        ValueError: If the run's method reshapes no labels, or the runs differ in columns or epochs.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"epoch": [0, 1], "train_reshaped_audio": [0.2, 0.5]})
        >>> [float(y) for y in plot_reshaped_share(table).get_lines()[0].get_ydata()]
        [20.0, 50.0]
    """
    runs = _runs(metrics)
    columns = _columns(runs, "train_reshaped_")
    ax = open_panel(ax)
    for number, name in enumerate(columns, start=1):
        label = plain_text(name.removeprefix("train_reshaped_"))
        _draw(ax, runs, name, 100, **{"label": label, **look(number), **line})
    ax.set(ylabel="training labels reshaped (%)", ylim=(0, 102))
    return _finish(ax)


def _runs(metrics: Metrics) -> list[pd.DataFrame]:
    return [metrics] if isinstance(metrics, pd.DataFrame) else list(metrics.values())


def _columns(runs: list[pd.DataFrame], prefix: str) -> list[str]:
    """Columns with a prefix, checked to be in all runs."""
    columns = [name for name in map(str, runs[0]) if name.startswith(prefix)] if runs else []
    if not columns:
        wanted = f"{prefix}<modality>" if prefix.endswith("_") else prefix
        raise ValueError(f"`metrics` should hold a column {wanted}. Found none.")
    for run in runs:
        if "epoch" not in run:
            raise ValueError("`metrics` should hold a column epoch. Found none.")
        if missing := [name for name in columns if name not in run]:
            raise ValueError(f"`metrics` of several runs should hold the same columns. {missing[0]} is not in all.")
        if list(run["epoch"]) != list(runs[0]["epoch"]):
            raise ValueError(
                "`metrics` of several runs should hold the same epochs. "
                f"Found {len(run)} and {len(runs[0])} of them; a mean over a changing number of runs would mislead."
            )
    return columns


def _draw(ax: Axes, runs: list[pd.DataFrame], name: str, factor: float, **line: Any) -> tuple[Any, Any]:
    """Draw mean and band of one std of a column; return both."""
    curves = pd.concat([run.set_index("epoch")[name] for run in runs], axis=1) * factor
    # An epoch that some run has no value of (a ratio by zero) has no mean either.
    mean = curves.mean(axis=1).where(curves.notna().all(axis=1))
    spread = curves.std(axis=1, ddof=1).fillna(0.0)
    marker = {"marker": "o", "markersize": 3} if len(mean) == 1 else {}  # a line of one point shows nothing
    if mean.isna().all():
        line["label"] = f"{line['label']} (not defined)"
    (curve,) = ax.plot(mean.index + 1, mean, **{**marker, **line})
    if len(runs) > 1:
        band: dict[str, Any] = {"color": curve.get_color(), "alpha": 0.15, "linewidth": 0}
        ax.fill_between(mean.index + 1, mean - spread, mean + spread, label=STD, **band)
    return mean.to_numpy(), spread.to_numpy()


def _pairs(metrics: pd.DataFrame, metric: str) -> dict[str, str]:
    """Label of every ratio's column.

    Modalities are read from the metric's columns: a name may hold a _ itself.
    """
    prefix = f"val_{metric}_"
    modalities = [name.removeprefix(prefix) for name in map(str, metrics) if name.startswith(prefix)]
    return {f"val_ratio_{a}_{b}": f"{a} / {b}" for a, b in itertools.combinations(modalities, 2)}


def _finish(ax: Axes) -> Axes:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    if np.ptp(ax.dataLim.intervalx) > 0:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:  # a single epoch would get ticks at its fractions
        ax.set_xticks(np.unique(ax.dataLim.intervalx))
    drop_inner_labels(ax)
    tidy(ax)
    # "best" is where the fewest points of lines are; the frame keeps it readable if one passes there all the same.
    add_legend(
        ax, last=(STD,), loc="best", frameon=True, framealpha=0.85, edgecolor="none", handlelength=2.6, fontsize=9
    )
    return ax
