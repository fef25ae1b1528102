"""The paper's tables and figures, behind ``bmlr reproduce``."""

from bmlr._extras import missing_extra

try:
    from bmlr.reproduction._collect import CollectedRun, collect_run
    from bmlr.reproduction._plot_embeddings import plot_features_tsne, plot_label_tsne
    from bmlr.reproduction._plot_label_rows import plot_label_rows
    from bmlr.reproduction._plot_labels import plot_label_simplex
    from bmlr.reproduction._plot_top_classes import count_top_classes, plot_top_classes
    from bmlr.reproduction._reproduce import plan_reproduction, reproduce
    from bmlr.reproduction._scales import ReproduceResult, Settings
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = [
    "CollectedRun",
    "ReproduceResult",
    "Settings",
    "collect_run",
    "count_top_classes",
    "plan_reproduction",
    "plot_features_tsne",
    "plot_label_rows",
    "plot_label_simplex",
    "plot_label_tsne",
    "plot_top_classes",
    "reproduce",
]
