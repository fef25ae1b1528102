"""Figures of runs, labels and predictions, as functions that draw on matplotlib axes and return them.

They draw what they are given, arrays and tables, and read no file but :func:`read_metrics` a run's metrics. Figures of
one panel take ``ax`` and return an Axes; figures with a panel per modality return the Axes by name.
"""

from bmlr.figures._curves import plot_accuracy, plot_ratio, plot_reshaped_share
from bmlr.figures._tables import plot_methods, plot_surface
from bmlr.reproduction._plot_embeddings import plot_features_tsne, plot_label_tsne
from bmlr.reproduction._plot_label_rows import plot_label_rows
from bmlr.reproduction._plot_labels import plot_label_simplex
from bmlr.reproduction._plot_top_classes import count_top_classes, plot_top_classes
from bmlr.runs._metrics import read_metrics

__all__ = [
    "count_top_classes",
    "plot_accuracy",
    "plot_features_tsne",
    "plot_label_rows",
    "plot_label_simplex",
    "plot_label_tsne",
    "plot_methods",
    "plot_ratio",
    "plot_reshaped_share",
    "plot_surface",
    "plot_top_classes",
    "read_metrics",
]
