"""The equations as pure functions on dictionaries of tensors, keyed by modality name."""

from bmlr.functional._labels import (
    MINIMUM_TEMPERATURE,
    ReshapedLabels,
    confidence_ratio,
    cross_modal_labels,
    reshape_labels,
    smooth_labels,
)
from bmlr.functional._losses import masked_mean, soft_cross_entropy

__all__ = [
    "MINIMUM_TEMPERATURE",
    "ReshapedLabels",
    "confidence_ratio",
    "cross_modal_labels",
    "masked_mean",
    "reshape_labels",
    "smooth_labels",
    "soft_cross_entropy",
]
