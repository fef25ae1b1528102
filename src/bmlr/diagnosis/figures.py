"""Figures of a diagnosis, drawn on matplotlib axes."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bmlr.diagnosis._blind import BlindModalityTest
from bmlr.diagnosis._diagnosis import Diagnosis
from bmlr.diagnosis._resampling import IntervalEstimate
from bmlr.figures.style import (
    COLOURS,
    HATCHES,
    add_legend,
    drop_inner_labels,
    look,
    open_panels,
    plain_text,
    ratio_ticks,
    set_title,
    tidy,
)
from bmlr.tables import format_count
from bmlr.tasks import prediction_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bmlr.diagnosis._robustness import Robustness

__all__ = [
    "draw_figures",
    "plot_accuracies",
    "plot_confidence",
    "plot_conflict",
    "plot_effects",
    "plot_gradient_norms",
    "plot_probes",
    "plot_robustness",
    "plot_shapley",
]

#: Legend of the curves behind a running median.
_RECORDS = "pale: single records"
_TITLES = {
    "accuracies": "Accuracy by modality", "shapley": "Contribution of each modality", "confidence": "Confidence gap",
    "probes": "Linear probes on the encoders", "gradients": "Gradient norm per encoder while training",
    "conflict": "Conflict of multimodal and unimodal gradients while training",
    "effects": "Effect of changing a modality",
}  # fmt: skip
_Bars = Mapping[str, Mapping[str, IntervalEstimate]]


def plot_accuracies(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Accuracies of each modality alone and of the others without it.

    Lines mark the multimodal accuracy and the most frequent class; error bars are intervals.

    Args:
        diagnosis: The diagnosis.
        ax: Axes; None makes a new figure.
    """
    ax = _axes(ax, len(diagnosis.modalities))
    series: dict[str, dict[str, IntervalEstimate]] = {
        "alone in the joint model": {u: measures.alone for u, measures in diagnosis.modalities.items()},
        "trained alone": {
            u: measures.trained_alone
            for u, measures in diagnosis.modalities.items()
            if measures.trained_alone is not None
        },
        "all others, without this one": {u: measures.without for u, measures in diagnosis.modalities.items()},
    }
    _percent_bars(ax, list(diagnosis.modalities), {label: bars for label, bars in series.items() if bars}, diagnosis)
    ax.axhline(100 * diagnosis.accuracy.value, color="black", linewidth=1, label=prediction_label("fused"))
    ax.axhline(100 * diagnosis.majority_rate, color="black", linewidth=1, linestyle=":", label="most frequent class")
    ax.set(ylabel="accuracy (%)", ylim=(0, 105))
    return _legend_above(ax)


def plot_effects(test: BlindModalityTest, ax: Axes | None = None) -> Axes:
    """By how much the score gets worse with each modality changed; dotted lines mark the margin.

    Args:
        test: A blind-modality test.
        ax: Axes; None makes a new figure.
    """
    ax = _axes(ax, len(test.effects))
    ways = dict.fromkeys(way for effects in test.effects.values() for way in effects)
    series = {way: {u: by_way[way].worse_by for u, by_way in test.effects.items() if way in by_way} for way in ways}
    _grouped_bars(ax, list(test.effects), series, 0.95, 1)
    ax.axhline(0, color="black", linewidth=1)
    for sign in (-1, 1):
        ax.axhline(sign * test.margin, color="black", linewidth=1, linestyle=":", label="margin")
    ax.set(ylabel=f"{test.score_name} worse by")
    return _legend_above(ax)


def plot_robustness(robustness: Robustness, axes: Mapping[str, Axes] | None = None) -> dict[str, Axes]:
    """Score over the rate of missing samples or the level of noise, a panel per sweep.

    Bands are intervals; a line is the multimodal prediction or that by one modality.

    Args:
        robustness: Scores of a model.
        axes: Axes by the label of the sweep; None makes a new figure.

    Raises:
        ValueError: If no modality was given several rates or levels.
    """
    if not robustness.sweeps:
        raise ValueError("`robustness` should hold a sweep. Found single rates only, which make no curve.")
    panels = open_panels(axes, list(robustness.sweeps), size=(4.2, 3.4))
    form = robustness.form
    factor = form.factor
    for label, sweep in robustness.sweeps.items():
        ax, kind, modality = panels[label], *label.split(" ", 1)
        levels = [(100 if kind == "missing" else 1) * level for level, _ in sweep]
        for number, name in enumerate(robustness.clean.scores):
            estimates = [score.scores[name] for _, score in sweep]
            style = look(number)
            ax.plot(
                levels,
                [factor * x.value for x in estimates],
                marker="o",
                markersize=3,
                label=plain_text(prediction_label(name)),
                **style,
            )
            low, high = ([factor * getattr(x, end) for x in estimates] for end in ("low", "high"))
            ax.fill_between(levels, low, high, color=style["color"], alpha=0.13, linewidth=0)
        unit = "samples without" if kind == "missing" else "noise on"
        ax.set_xlabel(plain_text(f"{unit} {modality} ({'%' if kind == 'missing' else 'its std'})"))
        ax.set_ylabel(form.label)
        if form.is_rate:
            ax.set_ylim(0, 102)
        drop_inner_labels(ax)
        tidy(ax)
    first = next(iter(panels.values()))
    add_legend(first, loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    return panels


def plot_shapley(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Shapley value of each modality in the accuracy.

    Their sum is the multimodal accuracy less the majority rate.

    Args:
        diagnosis: The diagnosis.
        ax: Axes; None makes a new figure.
    """
    ax = _axes(ax, len(diagnosis.modalities))
    bars = {"contribution": {u: measures.shapley_accuracy for u, measures in diagnosis.modalities.items()}}
    _percent_bars(ax, list(diagnosis.modalities), bars, diagnosis)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(ylabel="Shapley value in accuracy (points)")
    return _legend_above(ax)


def plot_confidence(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Mean absolute and mean signed confidence gap of each pair.

    A positive difference means that the first modality is more confident.

    Args:
        diagnosis: The diagnosis.
        ax: Axes; None makes a new figure.
    """
    ax = _axes(ax, len(diagnosis.pairs))
    bars = {
        "mean absolute gap": {pair: measures.confidence_gap for pair, measures in diagnosis.pairs.items()},
        "mean signed gap (above 0: the first is more confident)": {
            pair: measures.signed_confidence_gap for pair, measures in diagnosis.pairs.items()
        },
    }
    _percent_bars(ax, list(diagnosis.pairs), bars, diagnosis)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(ylabel="confidence gap: difference of\nthe true class's probability (points)")
    return _legend_above(ax)


def plot_probes(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Accuracy of linear probes on untrained, joint and separately trained encoders.

    Args:
        diagnosis: A diagnosis with probes.
        ax: Axes; None makes a new figure.

    Raises:
        ValueError: If there are no probes.
    """
    series: dict[str, dict[str, IntervalEstimate]] = {
        "untrained encoder": {},
        "joint encoder": {},
        "encoder trained alone": {},
    }
    for u, measures in diagnosis.modalities.items():
        values = (measures.probe_untrained, measures.probe_joint, measures.probe_alone)
        for bars, value in zip(series.values(), values, strict=True):
            if value is not None:
                bars[u] = value
    names = list(series["joint encoder"])
    if not names:
        raise ValueError("`diagnosis` should have probes: give them to diagnose as `reference`. Found none.")
    ax = _axes(ax, len(names))
    _percent_bars(ax, names, series, diagnosis)
    ax.axhline(100 * diagnosis.majority_rate, color="black", linewidth=1, linestyle=":", label="most frequent class")
    ax.set(ylabel="accuracy of a linear probe (%)", ylim=(0, 105))
    return _legend_above(ax)


def plot_gradient_norms(rows: Sequence[Mapping[str, float]], ax: Axes | None = None, *, window: int = 25) -> Axes:
    """Running median of the gradient norm per encoder, over pale records.

    Args:
        rows: Rows of a :class:`bmlr.monitor.GradientMonitor` or of :func:`bmlr.monitor.read_gradients`.
        ax: Axes; None makes a new figure.
        window: Number of records in the running median.

    Raises:
        ValueError: If there are no norms.

    Example:
        >>> rows = [{"step": step, "norm_audio": 2.0, "norm_video": 1.0} for step in range(3)]
        >>> [text.get_text() for text in plot_gradient_norms(rows).get_legend().get_texts()]
        ['audio', 'video', 'pale: single records']
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    ax = _curves(rows, "norm_", ax, window)
    values = [value for row in rows for name, value in row.items() if name.startswith("norm_")]
    if all(value > 0 for value in values):
        ax.set_yscale("log")
        if max(values) < 30 * min(values):  # too few powers of ten for labels at these alone
            ax.yaxis.set_major_locator(FixedLocator(ratio_ticks(*ax.get_ylim())))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
    ax.set(ylabel="gradient norm (running median)")
    return ax


def plot_conflict(rows: Sequence[Mapping[str, float]], ax: Axes | None = None, *, window: int = 5) -> Axes:
    """Cosine between multimodal and unimodal gradients per encoder; conflict is below zero.

    Args:
        rows: Rows of a :class:`bmlr.monitor.GradientMonitor` or of :func:`bmlr.monitor.read_gradients`.
        ax: Axes; None makes a new figure.
        window: Number of measurements in the running median.

    Raises:
        ValueError: If conflict was not measured.
    """
    ax = _curves(rows, "conflict_", ax, window)
    ax.axhline(0, color="black", linewidth=1, linestyle=":")
    ax.set(ylabel="cosine of multimodal and unimodal gradient", ylim=(-1.05, 1.05))
    return ax


def draw_figures(diagnosis: Diagnosis | BlindModalityTest) -> dict[str, Figure]:
    """All figures a diagnosis has numbers for, by name.

    They are independent of pyplot and need not be closed.
    """
    from matplotlib.figure import Figure

    if isinstance(diagnosis, BlindModalityTest):
        figure = Figure(figsize=_size(len(diagnosis.effects)), layout="constrained")
        plot_effects(diagnosis, figure.add_subplot())
        set_title(figure, f"{_TITLES['effects']}: {diagnosis.subject}, {format_count(diagnosis.samples, 'sample')}")
        return {"effects": figure}
    plots = {"accuracies": plot_accuracies, "shapley": plot_shapley, "confidence": plot_confidence}
    if any(measures.probe_joint is not None for measures in diagnosis.modalities.values()):
        plots["probes"] = plot_probes
    figures = {}
    for name, draw in plots.items():
        count = len(diagnosis.pairs if name == "confidence" else diagnosis.modalities)
        figures[name] = Figure(figsize=_size(count), layout="constrained")
        draw(diagnosis, figures[name].add_subplot())
        set_title(figures[name], f"{_TITLES[name]}: {diagnosis.subject}, {format_count(diagnosis.samples, 'sample')}")
    for name, prefix, plot in (
        ("gradients", "norm_", plot_gradient_norms),
        ("conflict", "conflict_", plot_conflict),
    ):
        if any(math.isfinite(v) for row in diagnosis.gradient_rows for k, v in row.items() if k.startswith(prefix)):
            figures[name] = Figure(figsize=_size(2), layout="constrained")
            plot(diagnosis.gradient_rows, figures[name].add_subplot())
            # Split and weights, which the subject goes on with, are of the diagnosis and not of these steps.
            set_title(figures[name], f"{_TITLES[name]}: {diagnosis.subject.partition(', ')[0]}")
    return figures


def _size(groups: int) -> tuple[float, float]:
    return max(5.0, 1.5 + 1.5 * groups), 3.8


def _axes(ax: Axes | None, groups: int) -> Axes:
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=_size(groups), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _percent_bars(ax: Axes, groups: Sequence[str], series: _Bars, diagnosis: Diagnosis) -> None:
    """Draw groups of bars in percent, with intervals."""
    _grouped_bars(ax, groups, series, diagnosis.thresholds.level, 100)


def _grouped_bars(ax: Axes, groups: Sequence[str], series: _Bars, level: float, factor: float) -> None:
    """Draw groups of bars with intervals."""
    legend = f"{100 * level:g} % interval"
    width = min(0.3, 0.8 / len(series))
    for number, (label, bars) in enumerate(series.items()):
        positions = [groups.index(name) + (number - (len(series) - 1) / 2) * width for name in bars]
        values = [factor * bar.value for bar in bars.values()]
        errors = [
            [max(0.0, factor * (bar.value - bar.low)) if math.isfinite(bar.low) else 0.0 for bar in bars.values()],
            [max(0.0, factor * (bar.high - bar.value)) if math.isfinite(bar.high) else 0.0 for bar in bars.values()],
        ]
        ax.bar(
            positions,
            values,
            0.9 * width,
            label=label,
            color=COLOURS[1:][number % (len(COLOURS) - 1)],  # no black: the intervals show on the bars
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        interval: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 1, "label": legend}
        ax.errorbar(positions, values, errors, capsize=3, **interval)
    names = ["\n".join(map(plain_text, textwrap.wrap(name, 18))) for name in groups]
    ax.set_xticks(range(len(groups)), names)
    ax.set_xlim(-0.6, len(groups) - 0.4)


def _curves(rows: Sequence[Mapping[str, float]], prefix: str, ax: Axes | None, window: int) -> Axes:
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))
    if not names:
        raise ValueError(f"`rows` should hold numbers named {prefix}… by modality. Found none.")
    ax = _axes(ax, 2)
    for number, name in enumerate(names):
        measured = [row for row in rows if math.isfinite(row.get(name, math.nan))]
        steps, values = [row["step"] for row in measured], [row[name] for row in measured]
        medians = [statistics.median(values[max(0, i - window // 2) : i + window // 2 + 1]) for i in range(len(values))]
        series = look(number + 1)
        ax.plot(steps, values, color=series["color"], alpha=0.2, linewidth=0.8, label=_RECORDS)
        ax.plot(steps, medians, label=plain_text(name.removeprefix(prefix)), **series)
    ax.set(xlabel="step")
    return _legend_above(ax)


def _legend_above(ax: Axes) -> Axes:
    """Add the legend above the axes, clear of the bars."""
    labels = ax.get_legend_handles_labels()[1]
    longest = max(map(len, labels), default=0)
    last = [label for label in labels if label == _RECORDS or label.endswith(" % interval")]
    above: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (0, 1.0)}
    above["ncols"] = 1 if longest > 30 else 2  # wider than the axes, it would be cut
    add_legend(ax, last, borderaxespad=0.2, fontsize="small", **above)
    return ax
