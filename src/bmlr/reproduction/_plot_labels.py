"""Labels of three classes in the triangle of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import check_unit_interval
from bmlr.figures.style import (
    checked_labels,
    checked_names,
    legend_below,
    named_arrays,
    open_panels,
    plain_text,
    point_look,
    scatter,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_HEIGHT = 3**0.5 / 2
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, _HEIGHT]])


def plot_label_simplex(
    labels: Mapping[str, ArrayLike],
    targets: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    classes: Sequence[int] | None = None,
    epsilon: float = 0.1,
    axes: Mapping[str, Axes] | None = None,
) -> dict[str, Axes]:
    """Labels of three classes in the triangle of probabilities (Fig. 3).

    Each modality has a panel.

    A corner is a one-hot label (star), the middle says nothing about the class (cross). Squares are the uniformly
    smoothed labels (1 − ε) y + ε / 3, which are all that smoothing without a look at the sample can give.

    Args:
        labels: Labels of each modality, shape (N, C): non-negative, rows that sum to one.
        targets: Class indices, shape (N,).
        class_names: Names of the C classes.
        classes: The three classes shown, needed where C > 3: samples of other classes are left out and the labels are
            divided by what they give to the three.
        epsilon: ε of the uniformly smoothed labels.
        axes: An Axes per modality; a new figure if left out.

    Returns:
        The Axes of each modality.

    Raises:
        ValueError: If shapes, labels or classes do not fit; the message names the argument.

    Example:
        >>> import numpy as np
        >>> labels = {"audio": np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), "video": np.eye(3)[:2]}
        >>> list(plot_label_simplex(labels, np.array([0, 1]), ["angry", "fear", "sad"]))
        ['audio', 'video']
    """
    epsilon = check_unit_interval("epsilon", epsilon)
    arrays, kept, indices = three_classes(labels, targets, classes)
    number = max(next(iter(arrays.values())).shape[1], max(indices) + 1)
    names = [checked_names(class_names, number)[index] for index in indices]
    panels = open_panels(axes, list(arrays), size=(3.4, 3.2))
    for modality, ax in panels.items():
        _draw_triangle(ax, names, epsilon)
        shares = arrays[modality][:, indices]
        total = shares.sum(axis=1)
        if (total == 0).any():
            raise ValueError(
                f"`labels[{modality!r}]` give nothing to the classes {', '.join(names)} in {int((total == 0).sum())} "
                "samples: they have no place in the triangle."
            )
        points = shares / total[:, None] @ _CORNERS
        for position, index in enumerate(indices):
            class_points = points[kept == index]
            style = point_look(position)
            label = plain_text(names[position], 24)
            scatter(ax, class_points, s=24, alpha=0.6, linewidths=0, label=label, zorder=3, **style)
        reshaped = int((shares.max(axis=1) < total * (1 - 1e-6)).sum())
        ax.set_title(f"{plain_text(modality)}: {reshaped} of {len(points)} labels reshaped", fontsize=9, pad=16)
    legend_below(panels, columns=6)
    return panels


def three_classes(
    labels: Mapping[str, ArrayLike], targets: ArrayLike, classes: Sequence[int] | None
) -> tuple[dict[str, NDArray[Any]], NDArray[Any], list[int]]:
    """Labels and targets of three classes, checked to be probabilities.

    Raises:
        ValueError: If they are not, or the classes are not three.
    """
    arrays, indices = named_arrays("labels", labels, targets)
    number = checked_labels(arrays, indices, least=3)
    rows = list(range(number)) if classes is None else [int(index) for index in classes]
    if len(set(rows)) != 3 or len(rows) != 3 or not all(0 <= index < number for index in rows):
        raise ValueError(f"`classes` should be three different classes below {number}. Found {classes!r}.")
    mask = np.isin(indices, rows)
    if not mask.any():
        raise ValueError(f"`targets` should hold samples of the classes {rows}. Found none.")
    return {name: np.clip(array[mask], 0, None) for name, array in arrays.items()}, indices[mask], rows


def _draw_triangle(ax: Axes, names: Sequence[str], epsilon: float) -> None:
    outline = np.vstack([_CORNERS, _CORNERS[:1]])
    ax.plot(*outline.T, color="0.4", linewidth=0.9, zorder=1)
    for share in (0.25, 0.5, 0.75):  # lines of equal probability of each class
        for turn in range(3):
            ends = np.array([np.roll([share, 1 - share, 0], turn), np.roll([share, 0, 1 - share], turn)]) @ _CORNERS
            label = "probability 25, 50, 75 %" if share == 0.25 and not turn else None
            ax.plot(*ends.T, color="0.85", linewidth=0.7, zorder=0, label=label)
    cross: dict[str, Any] = {"s": 36, "marker": "x", "color": "0.35", "linewidths": 1.2, "zorder": 4}
    scatter(ax, _CORNERS.mean(axis=0)[None], label="no class preferred", **cross)
    smoothed = ((1 - epsilon) * np.eye(3) + epsilon / 3) @ _CORNERS
    for position, (corner, square) in enumerate(zip(_CORNERS, smoothed, strict=True)):
        edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.9, "zorder": 5, "facecolors": "none"}
        first = position == 0
        scatter(ax, corner[None], s=110, marker="*", label="one-hot" if first else None, **edge)
        scatter(ax, square[None], s=34, marker="s", label=f"uniform, ε = {epsilon:g}" if first else None, **edge)
        vertical = "bottom" if position == 2 else "top"
        offset = (0, 7) if position == 2 else (0, -8)
        ax.annotate(
            plain_text(names[position], 17), corner, offset,
            textcoords="offset points", ha="center", va=vertical, fontsize=8,
        )  # fmt: skip
    ax.set(xlim=(-0.16, 1.16), ylim=(-0.16, _HEIGHT + 0.08), aspect="equal")
    ax.set_axis_off()
