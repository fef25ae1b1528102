"""Labels and texts of the tables of a diagnosis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bmlr.diagnosis._judge import Location, Status
from bmlr.diagnosis._resampling import IntervalEstimate
from bmlr.tables import format_percent

MODALITY_LABELS = {
    "samples": "samples with the modality",
    "majority_rate": "most frequent class",
    "alone": "accuracy alone",
    "alone_by_removal": "accuracy alone, by removal of the others",
    "without": "accuracy without it",
    "drop": "accuracy lost without it",
    "utilisation": "fraction of accuracy lost without it",
    "changed_rate": "predictions changed without it",
    "shapley_accuracy": "Shapley value, accuracy",
    "shapley_log_probability": "Shapley value, log-probability",
    "trained_alone": "accuracy trained alone",
    "recovered_fraction": "fraction of that recovered in the joint model",
    "relative_recovery": "the same relative to the best modality",
    "probe_joint": "linear probe, joint encoder",
    "probe_alone": "linear probe, encoder trained alone",
    "probe_untrained": "linear probe, untrained encoder",
    "encoder_gap": "probe gap to training alone",
    "encoder_fraction": "fraction of the encoder's gain",
}
#: Measures that are accuracies, or differences of these.
_ACCURACIES = {
    "majority_rate", "alone", "alone_by_removal", "without", "drop", "changed_rate", "shapley_accuracy",
    "trained_alone", "probe_joint", "probe_alone", "probe_untrained", "encoder_gap",
}  # fmt: skip
GRADIENT_LABELS = {
    "norm": "gradient norm in training (median)",
    "norm_fraction": "fraction of gradient norms (median)",
    "conflict": "cosine multimodal–unimodal gradient (median)",
    "conflict_rate": "steps with conflict",
}
PAIR_LABELS = {
    "accuracy_ratio": "accuracy ratio",
    "confidence_gap": "confidence gap",
    "signed_confidence_gap": "signed confidence gap",
}


def plain_values(value: Any) -> Any:
    """Convert a value for JSON, NaN and infinity to None."""
    if isinstance(value, IntervalEstimate):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_measure(name: str, value: Any) -> str:
    """Text of a measure; a dash for None."""
    if value is None:
        return "–"
    if name in _ACCURACIES:
        return value.percent if isinstance(value, IntervalEstimate) else format_percent(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_status(status: Status, location: Location) -> str:
    """Status of a modality, with the location of a weakness."""
    return f"{status} ({location})" if location else status
