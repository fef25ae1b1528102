"""Labels of single samples, number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bmlr.figures.style import checked_labels, checked_names, named_arrays, open_panels, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WRITTEN = 12  # classes up to which the numbers have room in their cells


def plot_label_rows(
    labels: Mapping[str, ArrayLike],
    targets: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    samples: Sequence[int] | None = None,
    sample_names: Sequence[str] | None = None,
    axes: Mapping[str, Axes] | None = None,
) -> dict[str, Axes]:
    """Labels of some samples, a row per sample (Fig. 3b and 3c).

    Each kind of label has a panel.

    Uniform smoothing gives all samples of a class the same label; reshaping gives each its own, which says what the
    sample is like. The shade is the probability of what the label leaves to other classes, on a scale of its own,
    shared by all panels: the true class, outlined, would outshine the rest.

    Args:
        labels: Labels of each kind, such as ``uniform`` and the modalities, shape (N, C): rows that sum to one.
        targets: Class indices, shape (N,).
        class_names: Names of the C classes.
        samples: Rows that are shown, in this order; all if left out.
        sample_names: Name of each of the N samples, shown beside its class.
        axes: An Axes per kind of label; a new figure if left out.

    Returns:
        The Axes of each kind of label.

    Raises:
        ValueError: If shapes, labels or samples do not fit; the message names the argument.

    Example:
        >>> import numpy as np
        >>> labels = {"audio": np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), "video": np.eye(3)[:2]}
        >>> list(plot_label_rows(labels, np.array([0, 1]), ["angry", "fear", "sad"]))
        ['audio', 'video']
    """
    arrays, indices = named_arrays("labels", labels, targets)
    rows = _checked_samples(samples, len(indices))
    number = checked_labels(arrays, indices, least=2)
    names = checked_names(class_names, number)
    if sample_names is not None and len(sample_names) != len(indices):
        raise ValueError(f"`sample_names` should be one per sample, {len(indices)}. Found {len(sample_names)}.")
    beside = [
        plain_text(names[indices[row]], 16) + (f", {plain_text(sample_names[row])}" if sample_names is not None else "")
        for row in rows
    ]
    size = (max(2.6, 0.62 + (0.36 if number <= _WRITTEN else 0.2) * number), 1.15 + 0.3 * len(rows))
    panels = open_panels(axes, list(arrays), size=size)
    remainders = {name: _mask_true_class(array[rows], indices[rows]) for name, array in arrays.items()}
    largest = max(0.05, *(float(np.nanmax(array)) for array in remainders.values()))
    for index, (name, ax) in enumerate(panels.items()):
        ax.set_facecolor("#f2f2f2")  # seen where there is no number
        ax.imshow(remainders[name], cmap="Blues", vmin=0, vmax=largest, aspect="auto")
        _write_numbers(ax, arrays[name][rows], indices[rows], largest)
        short = [plain_text(label, 16) for label in names]
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(
            range(number),
            short,
            fontsize=8 if number <= _WRITTEN else 6,
            **(turned if max(map(len, short)) > 3 else {}),
        )
        ax.set_yticks(range(len(rows)), beside if index == 0 else [""] * len(rows), fontsize=8)
        ax.tick_params(length=0)
        ax.set_xlabel("class", fontsize=8)
        ax.set_title(plain_text(name), fontsize=9)
        ax.spines[:].set_visible(False)
    return panels


def _mask_true_class(labels: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Labels with NaN for the true class."""
    remaining = labels.copy()
    remaining[np.arange(len(targets)), targets] = np.nan
    return remaining


def _write_numbers(ax: Axes, labels: NDArray[Any], targets: NDArray[Any], largest: float) -> None:
    from matplotlib.patches import Rectangle

    for row, target in enumerate(targets):
        frame = Rectangle((target - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="#D55E00", linewidth=1.1)
        ax.add_patch(frame)
        for column, value in enumerate(labels[row]):
            if (column == target or labels.shape[1] <= _WRITTEN) and value >= 0.005:
                dark = column != target and value > 0.6 * largest
                text = f"{value:.2f}".removeprefix("0")
                ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def _checked_samples(samples: Sequence[int] | None, number: int) -> list[int]:
    rows = list(range(number)) if samples is None else [int(row) for row in samples]
    if not rows or not all(0 <= row < number for row in rows):
        raise ValueError(f"`samples` should be at least one row below {number}. Found {samples!r}.")
    return rows
