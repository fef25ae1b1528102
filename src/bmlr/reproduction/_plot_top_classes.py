"""Classes among the top predictions of each modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import check_integer
from bmlr.figures.style import COLOURS, checked_names, named_arrays, plain_text, tidy
from bmlr.tables import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def count_top_classes(scores: Mapping[str, ArrayLike], targets: ArrayLike, *, top: int = 3) -> dict[str, NDArray[Any]]:
    """Counts of classes among the ``top`` predicted, by true class.

    Args:
        scores: Logits or probabilities of each modality, shape (N, C).
        targets: Class indices, shape (N,).
        top: Classes counted per sample.

    Returns:
        Counts of each modality, shape (C, C): a row per true class, a column per predicted one. A row sums to ``top``
        times the samples of its class.

    Raises:
        ValueError: If shapes or targets do not fit, or there are fewer than ``top`` classes.

    Example:
        >>> import numpy as np
        >>> logits = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
        >>> count_top_classes({"audio": logits}, np.array([0, 2]), top=2)["audio"]
        array([[1, 1, 0],
               [0, 0, 0],
               [0, 1, 1]])
    """
    arrays, indices = named_arrays("scores", scores, targets)
    check_integer("top", top, 1)
    counts = {}
    for name, array in arrays.items():
        number = array.shape[1]
        if top > number or indices.max() >= number:
            raise ValueError(
                f"`scores[{name!r}]` should have a column per class, at least {max(top, int(indices.max()) + 1)}. "
                f"Found {number}."
            )
        best = np.argsort(-array, axis=1, kind="stable")[:, :top]
        table = np.zeros((number, number), dtype=np.int64)
        np.add.at(table, (np.repeat(indices, top), best.reshape(-1)), 1)
        counts[name] = table
    return counts


def plot_top_classes(
    counts: Mapping[str, ArrayLike],
    targets: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    classes: Sequence[int] | None = None,
    shown: int = 6,
    axes: Mapping[tuple[str, str], Axes] | None = None,
) -> dict[tuple[str, str], Axes]:
    """Bars of the classes among the top predicted (Fig. 4).

    There is a row per true class and a column per modality.

    Args:
        counts: Counts of each modality as :func:`count_top_classes` gives them, shape (C, C).
        targets: Class indices the counts were made from, shape (N,): they say how many samples a class has.
        class_names: Names of the classes.
        classes: The true classes shown, all of them if left out.
        shown: Bars of a panel: the most frequent classes, and the true one in any case.
        axes: An Axes per (modality, class name); a new figure if left out.

    Returns:
        The Axes by modality and name of the true class.

    Raises:
        ValueError: If shapes or classes do not fit, or a class shown has no sample; the message names the argument.

    Example:
        >>> import numpy as np
        >>> targets = np.array([0, 1, 2, 0])
        >>> counts = count_top_classes({"audio": np.eye(3)[targets]}, targets, top=2)
        >>> panels = plot_top_classes(counts, targets, ["angry", "fear", "sad"], classes=[0])
        >>> [tick.get_text() for tick in panels["audio", "angry"].get_yticklabels()]
        ['angry', 'fear']
    """
    tables, sizes = _checked_counts(counts, targets)
    names = checked_names(class_names, len(sizes))
    check_integer("shown", shown, 1)
    true_classes = [int(index) for index in (range(len(sizes)) if classes is None else classes)]
    for index in true_classes:
        if not 0 <= index < len(sizes) or not sizes[index]:
            raise ValueError(f"`classes` should be classes with samples, below {len(sizes)}. Found {index}.")
    panels = _grid(axes, list(tables), [names[index] for index in true_classes], bars=min(shown, len(sizes)))
    for (modality, table), index in ((item, index) for item in tables.items() for index in true_classes):
        ax = panels[modality, names[index]]
        percent = 100 * table[index] / sizes[index]
        order = [int(i) for i in np.argsort(-percent, kind="stable") if percent[i] > 0]
        rows = order[:shown]
        if index not in rows:
            rows = [*rows[: shown - 1], index]
        for position, row in enumerate(rows):
            true = row == index
            look: dict[str, Any] = {"color": "#E69F00", "hatch": "////"} if true else {"color": COLOURS[1]}
            ax.barh(position, percent[row], height=0.72, edgecolor="white", linewidth=0, **look)
            text: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            ax.annotate(f"{percent[row]:.0f}", (percent[row], position), (3, 0), **text)
        ax.set_yticks(range(len(rows)), [plain_text(names[row], 20) for row in rows], fontsize=8)
        for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if row == index else "normal")
        ax.set(xlim=(0, 112), ylim=(len(rows) - 0.4, -0.6), xticks=[0, 25, 50, 75, 100])
        count = format_count(int(sizes[index]), "sample")
        title = f"true class {plain_text(names[index], 24)}\n{plain_text(modality)}, {count}"
        ax.set_title(title, fontsize=9, loc="left")
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=8)
        tidy(ax)
    for modality in tables:  # the last row of each column
        top = round(float(tables[modality].sum()) / float(sizes.sum()))
        panels[modality, names[true_classes[-1]]].set_xlabel(f"in the top {top} (% of samples)", fontsize=9)
    return panels


def _checked_counts(counts: Mapping[str, ArrayLike], targets: ArrayLike) -> tuple[dict[str, NDArray[Any]], Any]:
    classes = np.asarray(targets)
    tables = {str(name): np.asarray(table) for name, table in counts.items()}
    shapes = {name: table.shape for name, table in tables.items()}
    if not tables or len(set(shapes.values())) > 1 or any(len(s) != 2 or s[0] != s[1] for s in shapes.values()):
        raise ValueError(f"`counts` should hold tables of one shape (C, C). Found {shapes or 'none'}.")
    number = next(iter(tables.values())).shape[0]
    if classes.ndim != 1 or not len(classes) or classes.min() < 0 or classes.max() >= number:
        raise ValueError(f"`targets` should be class indices below {number}, shape (N,). Found shape {classes.shape}.")
    sizes = np.bincount(classes, minlength=number)
    for name, table in tables.items():
        top = table.sum() / len(classes)
        if (table < 0).any() or (table > sizes[:, None]).any() or (table.sum(axis=1) != top * sizes).any():
            raise ValueError(f"`counts[{name!r}]` should be counts of the samples in `targets`. They do not add up.")
    return tables, sizes


def _grid(
    axes: Mapping[tuple[str, str], Axes] | None, modalities: Sequence[str], classes: Sequence[str], bars: int
) -> dict[tuple[str, str], Axes]:
    keys = [(modality, name) for name in classes for modality in modalities]
    if axes is not None:
        if missing := [key for key in keys if key not in axes]:
            raise ValueError(f"`axes` should hold an Axes per modality and class. Missing {missing[0]}.")
        return {key: axes[key] for key in keys}
    from matplotlib import pyplot as plt

    size = (3.6 * len(modalities), (0.75 + 0.22 * bars) * len(classes) + 0.2)
    _, new = plt.subplots(len(classes), len(modalities), figsize=size, squeeze=False, layout="constrained")
    return dict(zip(keys, new.reshape(-1), strict=True))
