"""Labels and features in the plane, by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import check_integer, check_positive, check_unit_interval
from bmlr.figures.style import (
    checked_names,
    drop_inner_labels,
    legend_below,
    named_arrays,
    open_panels,
    plain_text,
    point_look,
    scatter,
)
from bmlr.reproduction._plot_labels import three_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_label_tsne(
    labels: Mapping[str, ArrayLike],
    targets: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    classes: Sequence[int] | None = None,
    epsilon: float = 0.1,
    max_samples: int = 1000,
    perplexity: float = 30.0,
    seed: int = 0,
    axes: Mapping[str, Axes] | None = None,
) -> dict[str, Axes]:
    """Labels of three classes by t-SNE (Figs. 1 and 3).

    Each modality has a panel.

    All labels, the one-hot ones (stars) and the uniformly smoothed ones (1 − ε) y + ε / C (squares), are embedded
    together: a position means the same label in every panel. As t-SNE would spread equal labels over an area, each
    different label is embedded once, and the size of its point says how many samples have it.

    Args:
        labels: Labels of each modality, shape (N, C): non-negative, rows that sum to one.
        targets: Class indices, shape (N,).
        class_names: Names of the C classes.
        classes: The three classes whose samples are shown, needed where C > 3.
        epsilon: ε of the uniformly smoothed labels.
        max_samples: Largest number of samples, drawn at random; the titles name it.
        perplexity: Perplexity of t-SNE; made smaller where there are few labels.
        seed: Seed of the random choice and of t-SNE.
        axes: An Axes per modality; a new figure if left out.

    Returns:
        The Axes of each modality.

    Raises:
        ValueError: If shapes, labels or classes do not fit; the message names the argument.

    Example:
        >>> import numpy as np
        >>> probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
        >>> panels = plot_label_tsne({"audio": probabilities}, probabilities.argmax(1))
        >>> panels["audio"].get_xlabel()
        't-SNE 1'
    """
    epsilon = check_unit_interval("epsilon", epsilon)
    arrays, kept, indices = three_classes(labels, targets, classes)
    total = len(kept)
    rows = _random_rows(total, max_samples, seed)
    arrays, kept = {name: array[rows] for name, array in arrays.items()}, kept[rows]
    number = next(iter(arrays.values())).shape[1]
    names = checked_names(class_names, number)
    one_hot = np.eye(number)[indices]
    smoothed = (1 - epsilon) * one_hot + epsilon / number
    stacked = np.concatenate([one_hot, smoothed, *arrays.values()]).round(4)
    different, where = np.unique(stacked, axis=0, return_inverse=True)
    positions = _embed(different, perplexity, seed)[where.reshape(-1)]

    panels = open_panels(axes, list(arrays), size=(3.6, 3.5), shared=True)
    start = 2 * len(indices)
    for modality, ax in panels.items():
        embedded = positions[start : start + len(kept)]
        start += len(kept)
        for position, index in enumerate(indices):
            points, counts = np.unique(embedded[kept == index], axis=0, return_counts=True)
            look = {"s": 22 + 8 * np.sqrt(counts - 1), "alpha": 0.6, "linewidths": 0, **point_look(position)}
            scatter(ax, points, label=plain_text(names[index], 24), zorder=3, **look)
        edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.9, "zorder": 5, "facecolors": "none"}
        scatter(ax, positions[:3], s=150, marker="*", label="one-hot", **edge)
        scatter(ax, positions[3:6], s=50, marker="s", label=f"uniform, ε = {epsilon:g}", **edge)
        _frame(ax, f"{modality}{_share(len(kept), total)}")
    legend_below(panels, columns=5, title="The larger a point, the more samples have this label.")
    return panels


def plot_features_tsne(
    features: Mapping[str, ArrayLike],
    targets: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    max_samples: int = 1000,
    perplexity: float = 30.0,
    seed: int = 0,
    axes: Mapping[str, Axes] | None = None,
) -> dict[str, Axes]:
    """Features by t-SNE, coloured by class, a panel per modality (Fig. 1).

    Every modality is embedded by itself: positions of different panels cannot be compared, the separation of classes
    can.

    Args:
        features: Features of each modality, shape (N, d); d may differ.
        targets: Class indices, shape (N,).
        class_names: Names of the classes.
        max_samples: Largest number of samples, drawn at random; the titles name it.
        perplexity: Perplexity of t-SNE; made smaller where there are few samples.
        seed: Seed of the random choice and of t-SNE.
        axes: An Axes per modality; a new figure if left out.

    Returns:
        The Axes of each modality.

    Raises:
        ValueError: If shapes do not fit or features are not finite; the message names the argument.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(30, 8))
        >>> panels = plot_features_tsne({"audio": features}, np.arange(30) % 3, ["angry", "fear", "sad"])
        >>> [text.get_text() for text in panels["audio"].get_figure().legends[0].get_texts()]
        ['angry', 'fear', 'sad']
    """
    arrays, indices = named_arrays("features", features, targets)
    names = checked_names(class_names, int(indices.max()) + 1)
    total = len(indices)
    rows = _random_rows(total, max_samples, seed)
    indices = indices[rows]
    different = np.unique(indices)
    columns = min(len(different), max(3, 2 * len(arrays)))
    panels = open_panels(axes, list(arrays), size=(3.8, 3.5 + 0.17 * -(-len(different) // columns)))
    for modality, ax in panels.items():
        positions = _embed(arrays[modality][rows], perplexity, seed)
        for index in different:
            points = positions[indices == index]
            label = plain_text(names[index], 24)
            scatter(ax, points, s=24, alpha=0.8, linewidths=0, label=label, **point_look(int(index)))
        _frame(ax, f"{modality}{_share(len(rows), total)}")
    legend_below(panels, columns=columns)
    return panels


def _random_rows(total: int, max_samples: int, seed: int) -> NDArray[Any]:
    """Positions of at most ``max_samples`` samples, in order."""
    check_integer("max_samples", max_samples, 4)
    if total <= max_samples:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, max_samples, replace=False))


def _share(shown: int, total: int) -> str:
    return f" ({shown} samples)" if shown == total else f" ({shown} of {total} samples)"


def _embed(points: NDArray[Any], perplexity: float, seed: int) -> NDArray[Any]:
    from sklearn.manifold import TSNE

    check_positive("perplexity", perplexity)
    if len(points) < 4:
        raise ValueError(f"t-SNE needs at least 4 different points. Found {len(points)}.")
    # With fewer points than dimensions asked for, principal components cannot start the embedding.
    start = "pca" if min(points.shape) >= 2 and np.ptp(points, axis=0).any() else "random"
    model = TSNE(perplexity=min(perplexity, (len(points) - 1) / 3), init=start, random_state=seed)
    return np.asarray(model.fit_transform(points), dtype=float)


def _frame(ax: Axes, title: str) -> None:
    """Remove the numbers of the axes: distances of t-SNE have no unit."""
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    ax.set_title(plain_text(title), fontsize=10)
    ax.margins(0.06)
    drop_inner_labels(ax)
