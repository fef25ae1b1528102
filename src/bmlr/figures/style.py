"""Colours, line styles, markers, texts, panels and checks of all figures."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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
#: Ten colours of classes: Paul Tol's muted scheme, made for the colour-blind, and black.
CLASS_COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip

#: Legend of the bands and lines around a mean over runs.
STD = "± one standard deviation"

#: Ticks of a ratio's logarithmic axis within a power of ten, from fine to coarse.
RATIO_STEPS = ((1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 3, 4, 5, 6, 7, 8, 9), (1, 1.2, 1.5, 2, 3, 4, 5, 6, 8),
               (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # fmt: skip

# Scripts that matplotlib's own font lacks; of these, the installed ones are used.
_MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei",
    "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Noto Sans", "Noto Emoji", "Arial Unicode MS",
)  # fmt: skip


def look(number: int) -> dict[str, Any]:
    """Colour and line style of the ``number``-th series."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def point_look(number: int) -> dict[str, Any]:
    """Colour and marker of the ``number``-th class.

    The pairs differ for 110 classes, colours and markers alone for ten.
    """
    return {"color": CLASS_COLOURS[number % len(CLASS_COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def plain_text(name: object, length: int | None = None) -> str:
    r"""Escape a user's name for matplotlib.

    Text between dollar signs would be set as mathematics, a control character or half a code point cannot be drawn, and
    a label that begins with an underscore is left out of legends.

    Args:
        name: The name.
        length: Number of characters; of a longer name, the middle is left out.

    Example:
        >>> plain_text("$5 and $6"), plain_text("a very long name", 8)
        ('\\$5 and \\$6', 'a ve…ame')
    """
    text = "".join(c if unicodedata.category(c) not in {"Cc", "Cs"} else ascii(c)[1:-1] for c in str(name))
    if length is not None and len(text) > length:
        text = f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"  # names may differ at either end
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def set_title(figure: Any, text: str) -> None:
    """Write a title above all panels, wrapped to their width."""
    lines = textwrap.wrap(text, max(20, int(11.5 * figure.get_figwidth())))
    figure.suptitle("\n".join(map(plain_text, lines)), fontsize=10)


def save(figure: Any, file: Path | IO[bytes], **options: Any) -> None:
    """Write a figure, with fonts for the scripts of its names.

    A warning says so if no installed font has a character.
    """
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    fonts = [font for font in _MORE_FONTS if font in set(get_font_names())]
    for text in figure.findobj(Text) if fonts else ():
        text.set_fontfamily(["DejaVu Sans", *fonts])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, **options)
    missing = [warning for warning in caught if re.search("missing from (current )?font", str(warning.message))]
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        warnings.warn(
            "A name in a figure has characters that no installed font has: they are drawn as boxes. "
            "Install a font of that script, such as Noto Sans CJK.",
            stacklevel=2,
        )


def ratio_ticks(low: float, high: float) -> list[float]:
    """At most eight ticks of a logarithmic axis, over its whole range.

    Example:
        >>> ratio_ticks(0.7, 2.2)
        [0.8, 1.0, 1.2, 1.5, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    scales = [[step * 10.0**power for power in powers for step in steps] for steps in RATIO_STEPS]
    ticks = [[round(tick, 12) for tick in scale if low <= tick <= high] for scale in scales]
    return next((scale for scale in ticks if len(scale) <= 8), ticks[-1])


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


def add_legend(ax: Axes, last: Sequence[str] = (), **options: Any) -> None:
    """Add a legend with each label once, those of ``last`` at its end."""
    handles = _handles([ax], last)
    ax.legend(list(handles.values()), list(handles), **options)


def _handles(panels: Iterable[Axes], last: Sequence[str] = ()) -> dict[str, Any]:
    """Legend handles by label, in order; those of ``last`` at the end."""
    handles: dict[str, Any] = {}
    for ax in panels:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    return {text: handles[text] for text in sorted(handles, key=lambda text: text in last)}


def legend_below(panels: Mapping[str, Axes], columns: int, title: str | None = None) -> None:
    """One legend under all panels, with larger and opaque points."""
    last: Any = list(panels.values())[-1]
    handles, texts = last.get_legend_handles_labels()
    marks = [index for index, handle in enumerate(handles) if handle.get_alpha() is None]  # one-hot and the like: last
    order = [index for index in range(len(handles)) if index not in marks] + marks
    legend = last.get_figure().legend(
        [handles[index] for index in order], [texts[index] for index in order],
        loc="outside lower center", ncols=columns, frameon=False, fontsize=8, handletextpad=0.2, title=title,
        title_fontsize=8,
    )  # fmt: skip
    for handle, index in zip(legend.legend_handles, order, strict=True):
        if index not in marks:
            handle.set(alpha=1.0, sizes=[32])
        elif hasattr(handle, "set_sizes"):  # a point, not a line
            handle.set_sizes([50])


def shared_legend(figure: Any, panels: Sequence[Axes], last: Sequence[str] = ()) -> None:
    """Replace the panels' legends by one below them, clear of the curves."""
    handles = _handles(panels, last)
    for legend in filter(None, [ax.get_legend() for ax in panels]):
        legend.remove()
    room = int(13 * figure.get_figwidth() / (max(map(len, handles), default=0) + 6))
    look: dict[str, Any] = {"ncols": max(1, min(room, len(handles))), "frameon": False, "handlelength": 2.8}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", **look)


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
            raise ValueError(
                f"`{name}[{modality!r}]` should be finite. Found NaN or infinity in {bad} of {len(array)} samples."
            )
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
