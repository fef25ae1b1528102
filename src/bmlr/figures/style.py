"""Colours, line styles, markers, panels and checks of all figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bmlr._checks import nearest_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by the colour-blind; line styles, markers and hatches tell the same in grey print.
# Their yellow is left out: on white paper it is too light for a line.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")


def look(number: int) -> dict[str, Any]:
    """Colour and line style of the ``number``-th series."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def point_look(number: int) -> dict[str, Any]:
    """Colour and marker of the ``number``-th class, different for 77 classes."""
    colours = COLOURS[1:] + COLOURS[:1]  # black last: it would look like an outline
    return {"color": colours[number % len(colours)], "marker": MARKERS[number % len(MARKERS)]}


def open_panel(ax: Axes | None, width: float = 4.5, height: float = 3.2) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def open_panels(
    axes: Mapping[str, Axes] | None, names: Sequence[str], *, size: tuple[float, float], shared: bool = False
) -> dict[str, Axes]:
    """An Axes per name: those given, or a row of new ones.

    Raises:
        ValueError: If ``axes`` lacks a name.
    """
    if axes is not None:
        if missing := [name for name in names if name not in axes]:
            raise ValueError(f"`axes` should hold an Axes for each of {', '.join(names)}. Missing {missing[0]!r}.")
        return {name: axes[name] for name in names}
    from matplotlib import pyplot as plt

    figure, new = plt.subplots(
        1, len(names), figsize=(size[0] * len(names), size[1]), sharex=shared, sharey=shared, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.06)
    return dict(zip(names, new[0], strict=True))


def scatter(ax: Axes, points: NDArray[Any], **look: Any) -> None:
    """Draw points, shape (N, 2)."""
    ax.scatter(points[:, 0], points[:, 1], **look)


def tidy(ax: Axes) -> None:
    """Take the frame's upper and right side away."""
    ax.spines[["top", "right"]].set_visible(False)


def drop_inner_labels(ax: Axes) -> None:
    """Like ``Axes.label_outer``, for shared axes only."""
    cell = ax.get_subplotspec()
    if cell is None:
        return
    if len(ax.get_shared_x_axes().get_siblings(ax)) > 1 and not cell.is_last_row():
        ax.set_xlabel("")
        ax.tick_params(axis="x", labelbottom=False)
    if len(ax.get_shared_y_axes().get_siblings(ax)) > 1 and not cell.is_first_col():
        ax.set_ylabel("")
        ax.tick_params(axis="y", labelleft=False)


def legend_below(panels: Mapping[str, Axes], columns: int) -> None:
    """One legend under all panels, with larger and opaque points."""
    last: Any = list(panels.values())[-1]
    handles, texts = last.get_legend_handles_labels()
    marks = [index for index, handle in enumerate(handles) if handle.get_alpha() is None]  # one-hot and the like: last
    order = [index for index in range(len(handles)) if index not in marks] + marks
    legend = last.get_figure().legend(
        [handles[index] for index in order], [texts[index] for index in order],
        loc="outside lower center", ncols=columns, frameon=False, fontsize=8, handletextpad=0.2,
    )  # fmt: skip
    for handle, index in zip(legend.legend_handles, order, strict=True):
        if index in marks:
            handle.set_sizes([50])
        else:
            handle.set(alpha=1.0, sizes=[24])


def legend_above(figure: Any, panels: Iterable[Axes]) -> None:
    """One legend above all panels, in place of their own.

    There it covers no curve.
    """
    lines: dict[str, Any] = {}
    for ax in panels:
        handles, texts = ax.get_legend_handles_labels()
        lines |= dict(zip(texts, handles, strict=True))
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    look: dict[str, Any] = {"ncols": min(4, len(lines)), "frameon": False, "handlelength": 2.8}
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", **look)


def named_arrays(name: str, arrays: Mapping[str, ArrayLike], targets: ArrayLike) -> tuple[dict[str, Any], NDArray[Any]]:
    """The arrays as (N, d) and the targets as (N,) integers, checked.

    Raises:
        ValueError: If there is none, a shape does not fit, or a value is not finite; the message names the array.
    """
    classes = np.asarray(targets)
    if classes.ndim != 1 or not len(classes) or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise ValueError(
            "`targets` should hold at least one class index (an integer from 0 on), shape (N,). "
            f"Found shape {classes.shape}, dtype {classes.dtype}."
        )
    if not isinstance(arrays, Mapping) or not arrays:
        raise ValueError(f"`{name}` should be a dictionary with an array per modality. Found {arrays!r}.")
    checked = {}
    for modality, values in arrays.items():
        array = np.asarray(values, dtype=float)
        if array.ndim != 2 or len(array) != len(classes) or not array.shape[1]:
            raise ValueError(
                f"`{name}[{modality!r}]` should have shape ({len(classes)}, d) as there are {len(classes)} targets. "
                f"Found shape {array.shape}."
            )
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).any(axis=1).sum())
            raise ValueError(f"`{name}[{modality!r}]` should be finite. Found NaN or infinity in {bad} samples.")
        checked[str(modality)] = array
    return checked, classes.astype(np.int64)


def checked_labels(arrays: Mapping[str, NDArray[Any]], targets: NDArray[Any], *, least: int) -> int:
    """The number of classes of labels, shape (N, C) each.

    Raises:
        ValueError: If they are not probabilities of one number of classes, at least ``least`` and above every target.
    """
    widths = {name: array.shape[1] for name, array in arrays.items()}
    number = int(next(iter(widths.values())))
    if len(set(widths.values())) > 1 or number < least or targets.max() >= number:
        raise ValueError(
            f"`labels` should all have one number of classes, at least {least}, above every target. Found {widths} and "
            f"targets up to {targets.max()}."
        )
    for name, array in arrays.items():
        if (array < -1e-6).any() or not np.allclose(array.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"`labels[{name!r}]` should be probabilities: non-negative, rows that sum to one.")
    return number


def checked_names(class_names: Sequence[str] | None, number: int) -> list[str]:
    """Names of the classes; "class 0" and so on by default.

    Raises:
        ValueError: If there are fewer names than classes.
    """
    if class_names is None:
        return [f"class {index}" for index in range(number)]
    if len(class_names) < number:
        raise ValueError(f"`class_names` should hold at least {number} names. Found {len(class_names)}.")
    return [str(name) for name in class_names]


def column(table: Any, name: str, argument: str) -> Any:
    """A column of a table.

    Raises:
        ValueError: If there is no such column; the message gives the nearest.
    """
    names = [str(head) for head in table]
    if name not in names:
        raise ValueError(
            f"`table` has no column {name!r} (`{argument}`). It has {', '.join(names) or 'none'}."
            f"{nearest_name(name, names)}"
        )
    return table[name]
