"""Figures of runs, as functions that draw on matplotlib axes and return them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by the colour-blind; line styles tell the same in grey print.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))


def read_metrics(run: Path | str) -> pd.DataFrame:
    """The metrics of a run, one row per epoch.

    Args:
        run: Directory of the run.

    Raises:
        FileNotFoundError: If the run has no finished epoch.
    """
    path = Path(run) / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"There are no metrics in {run}: {path.name} is missing.")
    return pd.read_csv(path)


def plot_accuracy(metrics: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None, **line: Any) -> Axes:
    """Validation accuracy per epoch, fused and of each modality (the paper's Fig. 6).

    Args:
        metrics: Metrics of a run as :func:`read_metrics` gives them; or of several runs by name (seeds, say), of which
            the mean is drawn, with a band of one standard deviation.
        ax: Where to draw; a new figure if left out.
        **line: Further properties of the lines.

    Raises:
        ValueError: If there is no validation accuracy among the metrics.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.4, 0.6], "val_accuracy_audio": [0.3, 0.5]})
        >>> [line.get_label() for line in plot_accuracy(table).get_lines()]
        ['fused', 'audio']
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    runs = [metrics] if isinstance(metrics, pd.DataFrame) else list(metrics.values())
    columns = [name for name in map(str, runs[0]) if name.startswith("val_accuracy")] if runs else []
    if not columns:
        raise ValueError("`metrics` should hold a column val_accuracy. Found none.")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    for number, column in enumerate(columns):
        label = column.removeprefix("val_accuracy").lstrip("_") or "fused"
        curves = pd.concat([run.set_index("epoch")[column] for run in runs], axis=1)
        mean, spread = 100 * curves.mean(axis=1), 100 * curves.std(axis=1, ddof=0)
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number % len(_STYLES)]
        ax.plot(mean.index + 1, mean, label=label, **{"color": colour, "linestyle": style, **line})
        if len(runs) > 1:
            ax.fill_between(mean.index + 1, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 102))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.label_outer()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    return ax
