"""Figures of runs and results, drawn on matplotlib axes.

They take arrays and tables and read no file. Figures of one panel take ``ax`` and return an Axes; figures with a panel
per modality return the Axes by name.
"""

from bmlr.figures._curves import plot_ratio, plot_reshaped_share, plot_scores
from bmlr.figures._tables import plot_methods, plot_ranks, plot_surface

__all__ = [
    "plot_methods",
    "plot_ranks",
    "plot_ratio",
    "plot_reshaped_share",
    "plot_scores",
    "plot_surface",
]
