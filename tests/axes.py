"""Checks of matplotlib axes as they are drawn."""

import io
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


def record_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on, a list that grows."""
    figures = []
    save = Figure.savefig

    def recording(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", recording)
    return figures


def title_of(figure: Figure) -> str:
    """The title above all panels, on one line."""
    return figure.get_suptitle().replace("\n", " ")


def shown_texts(figure: Figure) -> set[str]:
    """Visible texts as a reader sees them."""
    texts = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return {text.replace("\\$", "$").replace("\u200b", "") for text in texts}


def legend_texts(figure: Figure) -> list[str]:
    """Texts of all legends."""
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def draw(ax: Axes) -> None:
    """Draw the figure; matplotlib warns, an error here, if a text has no room."""
    whole_figure(ax).savefig(io.BytesIO(), format="png")


def whole_figure(ax: Axes) -> Figure:
    """The figure that the axes are drawn in."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    return figure


def texts_overlap(ax: Axes) -> bool:
    """Whether two labels or annotations overlap."""
    figure = whole_figure(ax)
    figure.canvas.draw()
    texts = [*ax.texts, ax.title]
    if ax.axison:
        texts += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    return any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
