"""Checks of matplotlib axes as they are drawn."""

import io


def draw(ax):
    """Draw the figure; matplotlib warns, an error here, if a text has no room."""
    ax.get_figure().savefig(io.BytesIO(), format="png")


def texts_overlap(ax):
    """Whether two labels or annotations overlap."""
    figure = ax.get_figure()
    figure.canvas.draw()
    texts = [*ax.texts, ax.title]
    if ax.axison:
        texts += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    return any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
