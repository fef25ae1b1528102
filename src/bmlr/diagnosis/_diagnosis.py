"""The record of a diagnosis: all measures with intervals, and the verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

from bmlr.diagnosis._judge import Status, Thresholds
from bmlr.diagnosis._resampling import IntervalEstimate
from bmlr.diagnosis._tables import (
    GRADIENT_LABELS,
    MODALITY_LABELS,
    PAIR_LABELS,
    format_measure,
    format_status,
    plain_values,
)
from bmlr.diagnosis._verdict import Verdict
from bmlr.tables import Cell, Table, format_count, format_percent


@dataclasses.dataclass(frozen=True)
class ModalityMeasures:
    """Measures of one modality, over its samples.

    Attributes:
        samples: Number of these samples.
        majority_rate: Rate of the most frequent class.
        alone: Accuracy alone: by its unimodal logits if the model has them, otherwise with all others removed.
        alone_by_removal: Accuracy with all others removed.
        without: Accuracy without it, over the samples with another modality.
        drop: Accuracy lost without it, over the same samples.
        utilisation: ``drop`` divided by the accuracy with it.
        changed_rate: Fraction of these samples whose prediction changes without it.
        shapley_accuracy: Its Shapley value in the accuracy; the values of all modalities add up to the multimodal
            accuracy less the majority rate.
        shapley_log_probability: Its Shapley value in the mean log-probability of the true class; the values add up to
            that of the model less that of the class rates.
        trained_alone: Accuracy after training on it alone; None if unknown.
        recovered_fraction: ``alone`` above the majority rate, divided by the same of ``trained_alone``.
        relative_recovery: ``recovered_fraction`` divided by that of the modality recovered best.
        probe_joint: Accuracy of a linear probe on the joint model's encoder; None if unknown.
        probe_alone: The same on an encoder trained alone.
        probe_untrained: The same on an untrained encoder.
        encoder_gap: ``probe_alone`` less ``probe_joint``.
        encoder_fraction: Gain of ``probe_joint`` over ``probe_untrained``, divided by that of ``probe_alone``.
        status: undertrained, uninformative, weak, unused, balanced or unclear.
    """

    samples: int
    majority_rate: float
    alone: IntervalEstimate
    alone_by_removal: IntervalEstimate
    without: IntervalEstimate
    drop: IntervalEstimate
    utilisation: IntervalEstimate
    changed_rate: IntervalEstimate
    shapley_accuracy: IntervalEstimate
    shapley_log_probability: IntervalEstimate
    trained_alone: IntervalEstimate | None = None
    recovered_fraction: IntervalEstimate | None = None
    relative_recovery: IntervalEstimate | None = None
    probe_joint: IntervalEstimate | None = None
    probe_alone: IntervalEstimate | None = None
    probe_untrained: IntervalEstimate | None = None
    encoder_gap: IntervalEstimate | None = None
    encoder_fraction: IntervalEstimate | None = None
    status: Status = "unclear"


@dataclasses.dataclass(frozen=True)
class PairMeasures:
    """Measures of two modalities, over their common samples.

    Attributes:
        samples: Number of these samples.
        accuracy_ratio: Accuracy alone of the first divided by that of the second.
        confidence_gap: Mean absolute difference of their probabilities of the true class.
        signed_confidence_gap: Mean difference; positive if the first is more confident.
    """

    samples: int
    accuracy_ratio: IntervalEstimate
    confidence_gap: IntervalEstimate
    signed_confidence_gap: IntervalEstimate


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All measures of a model, and the verdict.

    Attributes:
        subject: Description of the model and its data.
        samples: Number of samples.
        accuracy: Multimodal accuracy.
        majority_rate: Rate of the most frequent class.
        removal: Description of the removal of modalities.
        modalities: Measures of each modality.
        pairs: Measures of each pair, keyed ``audio/video``.
        gradients: Medians over recorded steps by modality, see :func:`bmlr.monitor.summarise_gradients`; empty
            without a recording.
        thresholds: Limits of the verdict.
        verdict: The verdict.
        gradient_rows: The recorded steps, for figures.
    """

    subject: str
    samples: int
    accuracy: IntervalEstimate
    majority_rate: float
    removal: str
    modalities: dict[str, ModalityMeasures]
    pairs: dict[str, PairMeasures]
    gradients: dict[str, dict[str, float | None]]
    thresholds: Thresholds
    verdict: Verdict
    gradient_rows: list[dict[str, float]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def paragraph(self) -> str:
        """The verdict in plain words."""
        return self.verdict.paragraph

    @property
    def undertrained(self) -> tuple[str, ...]:
        """The undertrained modalities."""
        return self.verdict.undertrained

    def as_dict(self) -> dict[str, Any]:
        """All numbers for JSON, with None for NaN and infinity."""
        return {
            "subject": self.subject,
            "samples": self.samples,
            "accuracy": plain_values(self.accuracy),
            "majority_rate": self.majority_rate,
            "removal": self.removal,
            "modalities": {u: plain_values(measures) for u, measures in self.modalities.items()},
            "pairs": {pair: plain_values(measures) for pair, measures in self.pairs.items()},
            "gradients": plain_values(self.gradients),
            "thresholds": plain_values(self.thresholds),
            "verdict": {
                "status": dict(self.verdict.status),
                "location": dict(self.verdict.location),
                "undertrained": list(self.undertrained),
                "methods": list(self.verdict.methods),
                "paragraph": self.paragraph,
            },
        }

    @property
    def caption(self) -> str:
        """Caption of the tables: samples, accuracy, majority rate and removal."""
        return (
            f"{self.subject}: {format_count(self.samples, 'sample')}, multimodal accuracy {self.accuracy.percent}, "
            f"most frequent class {format_percent(self.majority_rate)}. A removed modality has {self.removal}. In "
            f"brackets {100 * self.thresholds.level:g} % intervals: Wilson's for proportions, else by bootstrap."
        )

    def tables(self) -> tuple[Table, Table]:
        """The tables of modalities (a row per measure) and of pairs."""
        columns = list(self.modalities.values())
        rows = [
            [label, *(format_measure(name, getattr(measures, name)) for measures in columns)]
            for name, label in MODALITY_LABELS.items()
            if any(getattr(measures, name) is not None for measures in columns)
        ]
        for name, label in GRADIENT_LABELS.items():
            values = [self.gradients.get(u, {}).get(name) for u in self.modalities]
            if any(value is not None for value in values):
                rows.append([label, *("–" if value is None else f"{value:.3g}" for value in values)])
        status = [format_status(measures.status, self.verdict.location[u]) for u, measures in self.modalities.items()]
        rows.append(["verdict", *status])
        pairs = [
            [pair, *(format_measure(name, getattr(measures, name)) for name in PAIR_LABELS)]
            for pair, measures in self.pairs.items()
        ]
        return (
            Table(["measure", *self.modalities], [[Cell(text) for text in row] for row in rows]),
            Table(["pair", *PAIR_LABELS.values()], [[Cell(text) for text in row] for row in pairs]),
        )

    def to_markdown(self) -> str:
        """Paragraph and tables as Markdown."""
        tables = [table.markdown() for table in self.tables()]
        return "\n\n".join([f"# Diagnosis of {self.subject}", self.paragraph, self.caption, *tables]) + "\n"
