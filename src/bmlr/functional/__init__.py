"""Equations as pure functions on tensors, keyed by modality name."""

from bmlr.functional._alignment import alignment, jensen_shannon
from bmlr.functional._contrast import supervised_contrast, unit_rows
from bmlr.functional._labels import (
    MINIMUM_TEMPERATURE,
    ReshapedLabels,
    confidence_ratio,
    cross_modal_labels,
    reshape_labels,
    smooth_labels,
)
from bmlr.functional._losses import masked_mean, soft_cross_entropy
from bmlr.functional._pareto import pareto_weight
from bmlr.functional._precision import log_probabilities, widened
from bmlr.functional._shapley import shapley_values, subsets_of

__all__ = [
    "MINIMUM_TEMPERATURE",
    "ReshapedLabels",
    "alignment",
    "confidence_ratio",
    "cross_modal_labels",
    "jensen_shannon",
    "log_probabilities",
    "masked_mean",
    "pareto_weight",
    "reshape_labels",
    "shapley_values",
    "smooth_labels",
    "soft_cross_entropy",
    "subsets_of",
    "supervised_contrast",
    "unit_rows",
    "widened",
]
