"""Figures of a diagnosis, as functions that draw on matplotlib axes and return them."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmlr._files import atomic_write, atomic_write_text
from bmlr.diagnosis._diagnosis import Diagnosis
from bmlr.diagnosis._measures import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by the colour-blind; hatches and line styles tell the same in grey print.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_HATCHES = ("", "//", "..", "xx")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_Bars = Mapping[str, Mapping[str, Estimate]]


def plot_accuracies(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Accuracy of each modality alone in the joint model, after training alone if known, and of all others without it.

    Lines mark the fused accuracy and the most frequent class; error bars are bootstrap intervals.

    Args:
        diagnosis: What :func:`bmlr.diagnosis.diagnose` found.
        ax: Where to draw; a new figure if left out.
    """
    ax = _axes(ax, len(diagnosis.modalities))
    series: dict[str, dict[str, Estimate]] = {
        "alone in the joint model": {u: found.alone for u, found in diagnosis.modalities.items()},
        "trained alone": {
            u: found.trained_alone for u, found in diagnosis.modalities.items() if found.trained_alone is not None
        },
        "all others, without it": {u: found.left_out for u, found in diagnosis.modalities.items()},
    }
    _grouped_bars(ax, list(diagnosis.modalities), {label: bars for label, bars in series.items() if bars})
    ax.axhline(100 * diagnosis.accuracy.value, color="black", linewidth=1, label="fused")
    ax.axhline(100 * diagnosis.majority_rate, color="black", linewidth=1, linestyle=":", label="most frequent class")
    ax.set(ylabel="accuracy (%)", ylim=(0, 105))
    return _legend_above(ax)


def plot_shapley(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Shapley value of each modality in the accuracy; together they lead from the majority rate to the fused accuracy.

    Args:
        diagnosis: What :func:`bmlr.diagnosis.diagnose` found.
        ax: Where to draw; a new figure if left out.
    """
    ax = _axes(ax, len(diagnosis.modalities))
    bars = {"contribution": {u: found.shapley_accuracy for u, found in diagnosis.modalities.items()}}
    _grouped_bars(ax, list(diagnosis.modalities), bars)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(ylabel="Shapley value in accuracy (points)")
    return ax


def plot_confidence(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Confidence gap of each pair: mean size, and mean signed difference (positive: the first is more confident).

    Args:
        diagnosis: What :func:`bmlr.diagnosis.diagnose` found.
        ax: Where to draw; a new figure if left out.
    """
    ax = _axes(ax, len(diagnosis.pairs))
    bars = {
        "mean size": {pair: found.confidence_gap for pair, found in diagnosis.pairs.items()},
        "mean difference, first − second": {
            pair: found.signed_confidence_gap for pair, found in diagnosis.pairs.items()
        },
    }
    _grouped_bars(ax, list(diagnosis.pairs), bars)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(ylabel="gap in p(true class) (points)")
    return _legend_above(ax)


def plot_probes(diagnosis: Diagnosis, ax: Axes | None = None) -> Axes:
    """Accuracy of linear probes on each modality's encoder: untrained, in the joint model, trained alone.

    Args:
        diagnosis: What :func:`bmlr.diagnosis.diagnose` found with ``probe``.
        ax: Where to draw; a new figure if left out.

    Raises:
        ValueError: If there are no probes.
    """
    series: dict[str, dict[str, Estimate]] = {"untrained encoder": {}, "joint encoder": {}, "encoder trained alone": {}}
    for u, found in diagnosis.modalities.items():
        values = (found.probe_untrained, found.probe_joint, found.probe_alone)
        for bars, value in zip(series.values(), values, strict=True):
            if value is not None:
                bars[u] = value
    names = list(series["joint encoder"])
    if not names:
        raise ValueError("`diagnosis` should have probes: give `probe` to diagnose. Found none.")
    ax = _axes(ax, len(names))
    _grouped_bars(ax, names, series)
    ax.axhline(100 * diagnosis.majority_rate, color="black", linewidth=1, linestyle=":", label="most frequent class")
    ax.set(ylabel="accuracy of a linear probe (%)", ylim=(0, 105))
    return _legend_above(ax)


def plot_gradient_norms(rows: Sequence[Mapping[str, float]], ax: Axes | None = None, *, window: int = 25) -> Axes:
    """Gradient norm per encoder over the steps: running median, the records behind it pale.

    Args:
        rows: What a :class:`bmlr.monitor.GradientMonitor` recorded, or :func:`read_gradients` read.
        ax: Where to draw; a new figure if left out.
        window: Records of the running median.

    Raises:
        ValueError: If there are no norms.

    Example:
        >>> rows = [{"step": step, "norm_audio": 2.0, "norm_video": 1.0} for step in range(3)]
        >>> [text.get_text() for text in plot_gradient_norms(rows).get_legend().get_texts()]
        ['audio', 'video']
    """
    ax = _curves(rows, "norm_", ax, window)
    values = [value for row in rows for name, value in row.items() if name.startswith("norm_")]
    if all(value > 0 for value in values):
        ax.set_yscale("log")
        if max(values) < 30 * min(values):  # too few powers of ten for labels at these alone
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
    ax.set(ylabel="gradient norm")
    return ax


def plot_conflict(rows: Sequence[Mapping[str, float]], ax: Axes | None = None, *, window: int = 5) -> Axes:
    """Cosine between the gradients of fused and unimodal loss per encoder over the steps; below zero is conflict.

    Args:
        rows: What a :class:`bmlr.monitor.GradientMonitor` recorded, or :func:`read_gradients` read.
        ax: Where to draw; a new figure if left out.
        window: Measurements of the running median.

    Raises:
        ValueError: If conflict was not measured.
    """
    ax = _curves(rows, "conflict_", ax, window)
    ax.axhline(0, color="black", linewidth=1, linestyle=":")
    ax.set(ylabel="cosine of fused and unimodal gradient", ylim=(-1.05, 1.05))
    return ax


def figures_of(diagnosis: Diagnosis) -> dict[str, Figure]:
    """All figures that a diagnosis has the numbers for, by name.

    They belong to no window and need not be closed.
    """
    from matplotlib.figure import Figure

    drawn = {"accuracies": plot_accuracies, "shapley": plot_shapley, "confidence": plot_confidence}
    if any(found.probe_joint is not None for found in diagnosis.modalities.values()):
        drawn["probes"] = plot_probes
    figures = {}
    for name, draw in drawn.items():
        count = len(diagnosis.pairs if name == "confidence" else diagnosis.modalities)
        figures[name] = Figure(figsize=_size(count), layout="constrained")
        draw(diagnosis, figures[name].add_subplot())
    for name, prefix, plot in (
        ("gradients", "norm_", plot_gradient_norms),
        ("conflict", "conflict_", plot_conflict),
    ):
        if any(math.isfinite(v) for row in diagnosis.gradient_rows for k, v in row.items() if k.startswith(prefix)):
            figures[name] = Figure(figsize=_size(2), layout="constrained")
            plot(diagnosis.gradient_rows, figures[name].add_subplot())
    return figures


def _size(groups: int) -> tuple[float, float]:
    return max(5.0, 1.5 + 1.5 * groups), 3.8


def _axes(ax: Axes | None, groups: int) -> Axes:
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=_size(groups), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _grouped_bars(ax: Axes, groups: Sequence[str], series: _Bars) -> None:
    """Bars of each series side by side in every group, in percent, with intervals."""
    width = min(0.3, 0.8 / len(series))
    for number, (label, bars) in enumerate(series.items()):
        places = [groups.index(name) + (number - (len(series) - 1) / 2) * width for name in bars]
        values = [100 * bar.value for bar in bars.values()]
        spread = [
            [max(0.0, 100 * (bar.value - bar.low)) if math.isfinite(bar.low) else 0.0 for bar in bars.values()],
            [max(0.0, 100 * (bar.high - bar.value)) if math.isfinite(bar.high) else 0.0 for bar in bars.values()],
        ]
        ax.bar(
            places,
            values,
            0.9 * width,
            label=label,
            color=_COLOURS[number % len(_COLOURS)],
            hatch=_HATCHES[number % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        ax.errorbar(places, values, spread, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    ax.set_xticks(range(len(groups)), groups)
    ax.set_xlim(-0.6, len(groups) - 0.4)


def _curves(rows: Sequence[Mapping[str, float]], prefix: str, ax: Axes | None, window: int) -> Axes:
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))
    if not names:
        raise ValueError(f"`rows` should hold numbers named {prefix}… by modality. Found none.")
    ax = _axes(ax, 2)
    for number, name in enumerate(names):
        found = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        steps, values = [step for step, _ in found], [value for _, value in found]
        colour = _COLOURS[number % len(_COLOURS)]
        middle = [statistics.median(values[max(0, i - window // 2) : i + window // 2 + 1]) for i in range(len(values))]
        ax.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        ax.plot(steps, middle, color=colour, linestyle=_STYLES[number % len(_STYLES)], label=name.removeprefix(prefix))
    ax.set(xlabel="step")
    ax.legend(frameon=False)
    return ax


def _legend_above(ax: Axes) -> Axes:
    """The legend above the axes, where it covers no bar."""
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, fontsize="small")
    return ax


def write_diagnosis(diagnosis: Diagnosis, directory: Path | str, *, figures: bool = True) -> list[Path]:
    """Write ``diagnosis.json``, ``diagnosis.md`` and the figures as PNG.

    Args:
        diagnosis: What :func:`bmlr.diagnosis.diagnose` found.
        directory: Folder, made if need be.
        figures: Draw figures too, which needs matplotlib.

    Returns:
        The files that were written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(diagnosis.as_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write_text(directory / "diagnosis.json", text)
    atomic_write_text(directory / "diagnosis.md", diagnosis.to_markdown())
    written = [directory / "diagnosis.json", directory / "diagnosis.md"]
    for name, figure in figures_of(diagnosis).items() if figures else ():
        path = directory / f"{name}.png"
        atomic_write(path, functools.partial(_write_figure, figure))
        written.append(path)
    return written


def _write_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=150)
