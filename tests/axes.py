"""What is seen on matplotlib axes."""

import io


def draw(ax):
    """Lay the figure out and paint it, where matplotlib warns (an error here) if something has no room."""
    ax.get_figure().savefig(io.BytesIO(), format="png")


def texts_overlap(ax):
    """Whether two texts of the axes' labels and annotations lie on one another."""
    figure = ax.get_figure()
    figure.canvas.draw()
    found = [*ax.texts, ax.title]
    if ax.axison:
        found += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent() for text in found if text.get_text() and text.get_visible()]
    return any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


# ---- curves -------------------------------------------------------------------------------------------------------
