"""A diagnosis as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmlr.diagnosis._judge import Status
from bmlr.diagnosis._measures import (
    Estimate,
)

LABELS = {
    "samples": "samples that have it",
    "majority_rate": "most frequent class",
    "alone": "accuracy alone",
    "alone_by_removal": "accuracy alone, by removal of the others",
    "left_out": "accuracy without it",
    "drop": "accuracy lost without it",
    "utilisation": "share of accuracy lost without it",
    "changed": "predictions changed without it",
    "shapley_accuracy": "Shapley value, accuracy",
    "shapley_log_probability": "Shapley value, log-probability",
    "trained_alone": "accuracy trained alone",
    "recovered": "share of that recovered in the joint model",
    "prediction_share": "the same relative to the best modality",
    "probe_joint": "linear probe, joint encoder",
    "probe_alone": "linear probe, encoder trained alone",
    "probe_untrained": "linear probe, untrained encoder",
    "encoder_gap": "probe gap to training alone",
    "encoder_share": "share of the encoder's gain",
}


GRADIENT_LABELS = {
    "norm": "gradient norm in training (median)",
    "share": "share of gradient norms (median)",
    "conflict": "cosine fused–unimodal gradient (median)",
    "conflict_rate": "steps with conflict",
}


PAIR_HEADS = ("accuracy ratio", "confidence gap", "signed confidence gap")


def plain_values(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_status(status: Status, place: str) -> str:
    return f"{status} ({place})" if place else status


def markdown(heads: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *([label, *cells] for label, cells in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
