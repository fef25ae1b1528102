"""Surface over two parameters, and bars over methods."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bmlr.figures.style import COLOURS, HATCHES, STD, add_legend, column, open_panel, plain_text, tidy
from bmlr.tasks import metric_form, prediction_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RUN = "one run"
_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "epsilon": "ε", "tau": "τ", "lambda": "λ"}


def plot_surface(
    table: pd.DataFrame,
    x: str = "alpha",
    y: str = "beta",
    value: str = "accuracy",
    *,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A measure over two parameters as a map with values (Fig. 5).

    The colours grow lighter with the value, in grey print too; the best value, and any equal to it, has a frame.
    Rows of the same parameters (seeds) are averaged; a combination that was not run is left blank with a dash.

    Args:
        table: A row per run.
        x: Column of the parameter along the horizontal axis.
        y: Column of the parameter along the vertical axis.
        value: Column of the measure: the name of a metric, or of a number that should be large.
        label: What the measure is, with its unit; by default the metric.
        ax: Where to draw; a new figure if left out.

    Raises:
        ValueError: If a column is missing or not of finite numbers; the message names it.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"alpha": [0.5, 1.0], "beta": [0.1, 0.1], "accuracy": [0.71, 0.74]})
        >>> [text.get_text() for text in plot_surface(table).texts]
        ['71.0', '74.0']
    """
    columns = {}
    for argument, name in (("x", x), ("y", y), ("value", value)):
        numbers = pd.to_numeric(column(table, name, argument), errors="coerce")
        if not len(numbers) or not np.isfinite(numbers).all():
            raise ValueError(
                f"`table[{name!r}]` should hold finite numbers, at least one. Found {list(table[name])[:5]}."
            )
        columns[argument] = numbers.astype(float)
    form = metric_form(value)
    grid = pd.DataFrame(columns).pivot_table(values="value", index="y", columns="x", aggfunc="mean") * form.factor
    digits, best = form.digits, form.goodness(np.nanmax(form.goodness(1.0) * grid.to_numpy()))
    values = grid.to_numpy()
    height, width = values.shape
    ax = open_panel(ax, 1.9 + 0.68 * width, 1.2 + 0.48 * height)
    image = ax.imshow(np.ma.masked_invalid(values), cmap="cividis", origin="lower", aspect="auto")
    for (row, index), number in np.ndenumerate(values):
        if np.isnan(number):
            ax.text(index, row, "–", ha="center", va="center", color="0.4")
            continue
        red, green, blue, _ = image.cmap(image.norm(number))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(
            index, row, f"{number:.{digits}f}", ha="center", va="center", fontsize=9, color="white" if dark else "black"
        )
    # White inside black shows on every colour.
    for colour, line, text in (("black", 3.6, f"best value, {best:.{digits}f}"), ("white", 1.6, None)):
        frame = {"fill": False, "edgecolor": colour, "linewidth": line, "zorder": 3, "clip_on": False, "label": text}
        for row, index in np.argwhere(values == best):
            ax.add_patch(_rectangle((float(index) - 0.5, float(row) - 0.5), **frame))
    ax.set_xticks(range(width), [f"{number:g}" for number in grid.columns])
    ax.set_yticks(range(height), [f"{number:g}" for number in grid.index])
    ax.set(xlabel=_GREEK.get(x, plain_text(x)), ylabel=_GREEK.get(y, plain_text(y)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure: Any = ax.get_figure()
    figure.colorbar(image, ax=ax, label=label or form.label, pad=0.03).outline.set_visible(False)
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "borderaxespad": 0.3}
    add_legend(ax, title="–: not run" if np.isnan(values).any() else None, fontsize=9, title_fontsize=9, **above)
    return ax


def plot_methods(
    table: pd.DataFrame,
    *,
    metric: str = "accuracy",
    measures: Sequence[str] | None = None,
    constant: float | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars of the score of every method, multimodal and by modality.

    Bars are means, lines one sample standard deviation.

    Every run is drawn as a small circle as well, so that three seeds are not taken for more than they are.

    Args:
        table: A row per run: its method in the column ``method``, its score in one named like the metric, that of each
            modality in ``<metric>_<modality>``. A missing score (NaN) is left out.
        metric: Name of the metric.
        measures: Columns drawn; all of the metric if left out.
        constant: Score of the best constant prediction, of classes the majority rate, drawn as a line.
        label: What is measured, with its unit; by default the metric.
        ax: Where to draw; a new figure if left out.

    Raises:
        ValueError: If a column is missing, or there is no row.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"method": ["Joint", "Joint", "BMLR"], "accuracy": [0.70, 0.72, 0.75]})
        >>> [round(float(bar.get_width()), 1) for bar in plot_methods(table).patches]
        [71.0, 75.0]
    """
    names = [str(name) for name in dict.fromkeys(column(table, "method", "method"))]
    form = metric_form(metric)
    bars = [name for name in map(str, table) if name == metric or name.startswith(f"{metric}_")]
    columns = list(bars if measures is None else measures)
    if not names or not columns:
        raise ValueError(f"`table` should hold at least one row and a column {metric}. Found none.")
    for measure in columns:
        column(table, measure, "measures")
    ax = open_panel(ax, 6.4, 0.9 + len(names) * (0.17 * len(columns) + 0.16))
    thickness = 0.8 / len(columns)
    for number, measure in enumerate(columns):
        text = plain_text(prediction_label(measure.removeprefix(metric).removeprefix("_") or "fused"))
        colour = ("0.45", *COLOURS[1:])[number % len(COLOURS)]  # grey for black: circles and lines show on it
        for position, name in enumerate(names):
            values = form.factor * table.loc[table["method"].astype(str) == name, measure].dropna().to_numpy(
                dtype=float
            )
            if not len(values):
                continue
            height = position + (number - (len(columns) - 1) / 2) * thickness
            look: dict[str, Any] = {"color": colour, "hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white"}
            ax.barh(height, values.mean(), height=0.92 * thickness, linewidth=0, label=text, **look)
            if len(values) > 1:
                error: dict[str, Any] = {"color": "black", "capsize": 2, "linewidth": 1, "label": STD}
                ax.errorbar(values.mean(), height, xerr=values.std(ddof=1), **error)
                circle: dict[str, Any] = {"s": 9, "facecolor": "white", "edgecolor": "black", "linewidth": 0.6}
                ax.scatter(values, np.full(len(values), height), zorder=3, label=_RUN, **circle)
    line = "majority rate" if metric == "accuracy" else "constant prediction"
    if constant is not None:
        ax.axvline(form.factor * constant, color="black", linewidth=1, linestyle=(0, (4, 2)), label=line)
    ax.set_yticks(range(len(names)), ["\n".join(map(plain_text, textwrap.wrap(name, 44))) for name in names])
    ax.set(xlabel=label or form.label, ylim=(len(names) - 0.45, -0.55))
    if form.is_rate or ax.get_xlim()[0] > 0:
        ax.set_xlim(left=0)
    ax.tick_params(axis="y", length=0)
    tidy(ax)
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "frameon": False}
    add_legend(ax, last=(_RUN, STD, line), borderaxespad=0.2, fontsize=9, **above)
    return ax


def plot_ranks(ranks: pd.Series[float], critical_difference: float | None = None, *, ax: Axes | None = None) -> Axes:
    """Mean ranks of methods over data sets, the best on top.

    A band reaches from the best as far as the critical difference: methods in it are not told apart from the best.

    Args:
        ranks: Mean rank by method, 1 for the best.
        critical_difference: Difference of mean ranks from which two methods are told apart; None draws no band.
        ax: Where to draw; a new figure if left out.

    Raises:
        ValueError: If there is no method.

    Example:
        >>> import pandas as pd
        >>> axes = plot_ranks(pd.Series({"Joint": 2.0, "BMLR": 1.0}), 0.7)
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['BMLR', 'Joint']
    """
    if not len(ranks):
        raise ValueError("`ranks` should hold at least one method. Found none.")
    ordered = ranks.sort_values(kind="stable")
    ax = open_panel(ax, 6.4, 1.0 + 0.19 * len(ordered))
    best = float(ordered.iloc[0])
    if critical_difference is not None:
        ax.axvspan(best, best + critical_difference, color="0.88", linewidth=0, label="not told apart from the best")
    ax.hlines(range(len(ordered)), 1, ordered, color="0.75", linewidth=0.8)
    ax.scatter(ordered, range(len(ordered)), color=COLOURS[1], s=22, zorder=3)
    ax.set_yticks(range(len(ordered)), [plain_text(name) for name in ordered.index], fontsize=9)
    ax.set(xlabel="mean rank (1 is best)", ylim=(len(ordered) - 0.4, -0.6))
    ax.set_xlim(left=0.5)
    ax.tick_params(axis="y", length=0)
    tidy(ax)
    if critical_difference is not None:
        add_legend(ax, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0.2, fontsize=9)
    return ax


def _rectangle(corner: tuple[float, float], **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, **look)
