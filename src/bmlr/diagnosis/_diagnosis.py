"""The diagnosis of a model: all measures with intervals, and the verdict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bmlr.diagnosis._judge import Status, Thresholds
from bmlr.diagnosis._measures import (
    Estimate,
)
from bmlr.diagnosis._words import Verdict

if TYPE_CHECKING:
    from rich.table import Table
from bmlr.diagnosis._tables import (
    GRADIENT_LABELS,
    LABELS,
    PAIR_HEADS,
    format_cell,
    format_status,
    markdown,
    plain_values,
)


@dataclasses.dataclass(frozen=True)
class ModalityMeasures:
    """What was measured of one modality.

    Attributes:
        samples: Samples that have it.
        majority_rate: Share of the most frequent class among them.
        alone: Accuracy by it alone: by its unimodal logits, where the model gives such; else with all others removed.
        alone_by_removal: Accuracy with all others removed.
        left_out: Accuracy without it, over the samples that have it and another.
        drop: Accuracy lost without it, over the same samples.
        utilisation: The same as a share of the accuracy with it.
        changed: Share of these samples whose prediction is another without it.
        shapley_accuracy: Its Shapley value in the accuracy; the values of all modalities add up to the fused accuracy
            less the majority rate.
        shapley_log_probability: Its Shapley value in the mean log-probability of the true class; they add up to that
            of the model less that of the class rates.
        trained_alone: Accuracy after training on it alone; None if unknown.
        recovered: What ``alone`` is above the majority rate, as a share of what ``trained_alone`` is.
        prediction_share: ``recovered`` as a share of that of the modality that is recovered best.
        probe_joint: Accuracy of a linear probe on the joint model's encoder; None if unknown.
        probe_alone: The same on an encoder trained alone.
        probe_untrained: The same on an encoder before its training.
        encoder_gap: ``probe_alone`` less ``probe_joint``.
        encoder_share: Gain of ``probe_joint`` over ``probe_untrained`` as a share of that of ``probe_alone``.
        status: The verdict's word, see :func:`bmlr.diagnosis.judge`.
    """

    samples: int
    majority_rate: float
    alone: Estimate
    alone_by_removal: Estimate
    left_out: Estimate
    drop: Estimate
    utilisation: Estimate
    changed: Estimate
    shapley_accuracy: Estimate
    shapley_log_probability: Estimate
    trained_alone: Estimate | None = None
    recovered: Estimate | None = None
    prediction_share: Estimate | None = None
    probe_joint: Estimate | None = None
    probe_alone: Estimate | None = None
    probe_untrained: Estimate | None = None
    encoder_gap: Estimate | None = None
    encoder_share: Estimate | None = None
    status: Status = "unclear"


@dataclasses.dataclass(frozen=True)
class PairMeasures:
    """What was measured of two modalities, over the samples that have both.

    Attributes:
        samples: Samples that have both.
        accuracy_ratio: Accuracy alone of the first over that of the second.
        confidence_gap: Mean absolute difference of their probabilities of the true class.
        signed_confidence_gap: Mean difference; positive where the first is more confident.
    """

    samples: int
    accuracy_ratio: Estimate
    confidence_gap: Estimate
    signed_confidence_gap: Estimate


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All measures of a model and the verdict on them.

    Attributes:
        subject: What was diagnosed, in words.
        samples: Number of samples.
        accuracy: Fused accuracy.
        majority_rate: Share of the most frequent class.
        removal: How modalities were removed, in words.
        modalities: Measures of each modality.
        pairs: Measures of each pair, keyed ``audio/video``.
        gradients: Medians over recorded steps by modality, see :func:`summarise_gradients`; empty if none were.
        thresholds: What the verdict took as much or little.
        verdict: The verdict.
        gradient_rows: The recorded steps, for figures.
    """

    subject: str
    samples: int
    accuracy: Estimate
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
        """The modalities found undertrained."""
        return self.verdict.undertrained

    @property
    def has_references(self) -> bool:
        """Whether training alone is known of any modality."""
        return any(found.trained_alone is not None for found in self.modalities.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data; a number that is not finite is None, as JSON has no name for it."""
        return {
            "subject": self.subject,
            "samples": self.samples,
            "accuracy": plain_values(self.accuracy),
            "majority_rate": self.majority_rate,
            "removal": self.removal,
            "modalities": {u: plain_values(found) for u, found in self.modalities.items()},
            "pairs": {pair: plain_values(found) for pair, found in self.pairs.items()},
            "gradients": plain_values(self.gradients),
            "thresholds": plain_values(self.thresholds),
            "verdict": {
                "status": dict(self.verdict.status),
                "place": dict(self.verdict.place),
                "undertrained": list(self.undertrained),
                "methods": list(self.verdict.methods),
                "paragraph": self.paragraph,
            },
        }

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: a row per measure, with its name and a cell per modality."""
        found = list(self.modalities.values())
        rows = [
            (label, [format_cell(getattr(measures, name)) for measures in found])
            for name, label in LABELS.items()
            if any(getattr(measures, name) is not None for measures in found)
        ]
        for name, label in GRADIENT_LABELS.items():
            values = [self.gradients.get(u, {}).get(name) for u in self.modalities]
            if any(value is not None for value in values):
                rows.append((label, ["–" if value is None else f"{value:.3g}" for value in values]))
        words = [format_status(measures.status, self.verdict.place[u]) for u, measures in self.modalities.items()]
        rows.append(("verdict", words))
        return rows

    def pair_rows(self) -> list[tuple[str, list[str]]]:
        """The table of pairs: a row per pair, with its name and a cell per measure of :class:`PairMeasures`."""
        return [
            (pair, [str(found.accuracy_ratio), str(found.confidence_gap), str(found.signed_confidence_gap)])
            for pair, found in self.pairs.items()
        ]

    @property
    def caption(self) -> str:
        """What the table is of: samples, accuracy, majority rate, and how modalities were removed."""
        return (
            f"{self.subject}: {self.samples} samples, fused accuracy {self.accuracy}, most frequent class "
            f"{self.majority_rate:.3f}. A removed modality has {self.removal}. In brackets {self.thresholds.level:.0%} "
            "bootstrap intervals."
        )

    def tables(self) -> tuple[Table, Table]:
        """The tables of modalities and of pairs for a terminal, by rich."""
        from rich.table import Table

        first = Table("measure", *self.modalities, title="modalities")
        for label, cells in self.rows():
            first.add_row(label, *cells)
        second = Table("pair", *PAIR_HEADS, title="pairs")
        for pair, cells in self.pair_rows():
            second.add_row(pair, *cells)
        return first, second

    def to_markdown(self) -> str:
        """Paragraph and tables as Markdown."""
        lines = [f"# Diagnosis of {self.subject}", "", self.paragraph, "", self.caption, ""]
        lines += markdown(["measure", *self.modalities], self.rows())
        lines += ["", *markdown(["pair", *PAIR_HEADS], self.pair_rows())]
        return "\n".join(lines) + "\n"
