"""The verdict of a diagnosis, written as a paragraph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bmlr.diagnosis._judge import Evidence, Location, Status, Thresholds, choose_methods, judge
from bmlr.diagnosis._resampling import IntervalEstimate
from bmlr.tables import format_count, format_percent, join_names


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Status of every modality, and the verdict as text.

    Attributes:
        status: undertrained, uninformative, weak, unused, balanced or unclear, by modality.
        location: Location an undertrained modality is behind in: encoder, decision, or "" if unknown.
        paragraph: Findings, the numbers behind them and advice, in plain words.
        methods: Methods worth trying, among :func:`bmlr.methods.available`.
    """

    status: dict[str, Status]
    location: dict[str, Location]
    paragraph: str
    methods: tuple[str, ...]

    def with_status(self, *status: Status) -> tuple[str, ...]:
        """The modalities of the given status."""
        return tuple(u for u, word in self.status.items() if word in status)

    @property
    def undertrained(self) -> tuple[str, ...]:
        """The undertrained modalities."""
        return self.with_status("undertrained")


@dataclasses.dataclass(frozen=True)
class Context:
    """Facts about the model that the sentences depend on.

    Attributes:
        accuracy: Accuracy of the multimodal prediction.
        samples: Number of samples.
        method: Name of the method in use.
        missing: Some samples lack modalities.
        conflict: Median cosine between multimodal and unimodal gradients during training, by modality.
        can_probe: The advice may name the switch ``--probe``.
        shuffled: Accuracies alone rest on shuffled inputs of the others, which makes them too low.
    """

    accuracy: IntervalEstimate
    samples: int
    method: str | None = None
    missing: bool = False
    conflict: Mapping[str, float] = dataclasses.field(default_factory=dict)
    can_probe: bool = False
    shuffled: bool = False


def write_verdict(evidence: Mapping[str, Evidence], thresholds: Thresholds, context: Context) -> Verdict:
    """Judge every modality and write the paragraph.

    Args:
        evidence: Evidence on each modality.
        thresholds: Limits of the verdict.
        context: Facts about the model.
    """
    judged = {u: judge(numbers, thresholds) for u, numbers in evidence.items()}
    status = {u: word for u, (word, _) in judged.items()}
    location = {u: where for u, (_, where) in judged.items()}
    verdict = Verdict(status, location, "", ())
    behind = verdict.undertrained
    remedies: dict[str, str] = {}
    if behind:
        conflicting = any(value < 0 for u, value in context.conflict.items() if u in behind)
        remedies = choose_methods(
            [location[u] for u in behind], current=context.method, missing=context.missing, conflict=conflicting
        )
    writer = _Writer(evidence, verdict, thresholds, context)
    paragraph = " ".join([*writer.findings(), *writer.gradients(), *writer.advice(remedies)])
    return dataclasses.replace(verdict, paragraph=paragraph, methods=tuple(remedies))


class _Writer:
    """Writes sentences about a verdict."""

    def __init__(
        self, evidence: Mapping[str, Evidence], verdict: Verdict, thresholds: Thresholds, context: Context
    ) -> None:
        self.evidence, self.verdict, self.thresholds, self.context = evidence, verdict, thresholds, context

    def findings(self) -> list[str]:
        """Findings with their numbers."""
        verdict, context = self.verdict, self.context
        if context.samples < self.thresholds.min_samples:
            sentence = (
                f"The evidence is insufficient: {format_count(context.samples, 'sample')}, and a verdict needs "
                f"{self.thresholds.min_samples}. The multimodal accuracy is "
                f"{context.accuracy.percent}."
            )
            return [sentence]
        sentences = [self._undertrained(u) for u in verdict.undertrained]
        sentences += [self._uninformative(u) for u in verdict.with_status("uninformative")]
        sentences += [self._unused(u) for u in verdict.with_status("unused")]
        sentences += [self._weak(u) for u in verdict.with_status("weak")]
        sentences += [self._unclear(u) for u in verdict.with_status("unclear")]
        balanced = verdict.with_status("balanced")
        if balanced:
            if not verdict.with_status("undertrained", "unclear", "weak", "unused"):
                sentences.insert(0, "No modality is undertrained.")
            sentences.append(self._balanced(balanced))
        return sentences

    def gradients(self) -> list[str]:
        """Conflict of gradients on the undertrained encoders."""
        conflict = self.context.conflict
        return [
            f"During training, on the encoder of {u}, the gradients of the multimodal loss and of its own loss "
            f"{'conflicted' if conflict[u] < 0 else 'agreed'} (median cosine {conflict[u]:.2f})."
            for u in self.verdict.undertrained
            if u in conflict and math.isfinite(conflict[u])
        ]

    def advice(self, remedies: Mapping[str, str]) -> list[str]:
        """Methods to try, and next steps."""
        verdict, sentences = self.verdict, []
        if behind := verdict.undertrained:
            methods = "; ".join(f"{name} ({effect})" for name, effect in remedies.items())
            sentences.append(f"Worth trying: {methods}.")
            sentences.append(f"Without another method: {self._plain_advice(behind)}.")
        if uninformative := verdict.with_status("uninformative"):
            sentences.append(
                f"Balancing cannot help {join_names(uninformative)} and may hurt the rest: check that its inputs are "
                "read and aligned with the targets, or leave it out."
            )
        if verdict.with_status("weak", "unused"):
            how = (
                "with --probe"
                if self.context.can_probe
                else "with `reference` (accuracies or probes of models trained on one modality)"
            )
            sentences.append(
                f"To decide between the two, compare with training on each modality alone: diagnose {how}."
            )
        if verdict.with_status("unclear"):
            sentences.append(
                f"More samples would settle it: there were {self.context.samples}, and intervals shrink with the "
                "square root of their number."
            )
        if set(verdict.status.values()) == {"balanced"}:
            sentences.append(self._balanced_advice())
        if self.context.shuffled and verdict.with_status("undertrained", "weak"):
            sentences.append(
                "Shuffled inputs of the other modalities vote for their own classes, which makes accuracies alone too "
                "low: check that removal by the mean input gives the same verdict."
            )
        return sentences

    def _balanced_advice(self) -> str:
        held_back = [
            u
            for u, numbers in self.evidence.items()
            if numbers.trained_alone is not None and numbers.alone.high < numbers.trained_alone.low
        ]
        if len(held_back) == len(self.evidence):
            return (
                "None is behind another, but each alone is below training alone: a loss of its own for every modality "
                "may help all of them."
            )
        return "Balancing has little to add here; look to data, encoders and regularisation for better accuracy."

    def _plain_advice(self, behind: Sequence[str]) -> str:
        verdict = self.verdict
        ahead = [u for u in verdict.status if u not in behind and u not in verdict.with_status("uninformative")]
        if any(verdict.location[u] == "encoder" for u in behind):
            slower = f" or {join_names(ahead)} a smaller one" if ahead else ""
            return (
                f"start from an encoder of {join_names(behind)} trained alone, give it a larger learning rate{slower}, "
                "or train longer"
            )
        hide = f"leave {join_names(ahead)} out of some training batches, " if ahead else ""
        return f"{hide}refit the classifier head on frozen encoders, or train longer"

    def _undertrained(self, u: str) -> str:
        numbers, location, best = self.evidence[u], self.verdict.location[u], self._best_other(u)
        trained_alone = _percent(numbers.trained_alone)
        reasons = [f"alone in the joint model it reaches {_percent(numbers.alone)}, trained alone {trained_alone}"]
        if location == "encoder":
            reasons.append(
                f"a linear probe on its encoder scores {_percent_estimate(numbers.encoder_gap)} below one on an "
                "encoder trained alone"
            )
        if numbers.relative_recovery is not None and best is not None:
            reasons.append(
                "the joint model recovers of this, above chance, "
                f"{_estimate(numbers.relative_recovery)} of what it recovers for {best}"
            )
        if location == "encoder":
            where = "It is behind in its encoder."
        elif numbers.encoder_gap is None:
            where = "Only linear probes can tell whether its encoder or the classifier head is behind."
        else:
            where = (
                "It is behind in the classifier head's use of its features rather than in its encoder: a linear probe "
                f"scores only {_percent_estimate(numbers.encoder_gap)} below one on an encoder trained alone."
            )
        recovery = numbers.relative_recovery
        mild = recovery is not None and recovery.value >= 2 * self.thresholds.fraction - 1 and location != "encoder"
        chance = " Equal modalities can differ as much by the chance of one run: look at other seeds." if mild else ""
        return f"{u} is {'mildly ' if mild else ''}undertrained: {'; '.join(reasons)}. {where}{chance}"

    def _uninformative(self, u: str) -> str:
        numbers = self.evidence[u]
        return (
            f"{u} is uninformative, not undertrained: trained alone it reaches "
            f"{_percent_estimate(numbers.trained_alone)}; "
            f"always answering the most frequent class reaches {format_percent(numbers.chance)}."
        )

    def _unused(self, u: str) -> str:
        numbers = self.evidence[u]
        return (
            f"The model does not use {u}: alone it reaches {numbers.alone.percent}, the most frequent class "
            f"{format_percent(numbers.chance)}, and without it {numbers.drop.percent} of accuracy is "
            "lost. Either it is undertrained or it carries no information."
        )

    def _weak(self, u: str) -> str:
        numbers, best = self.evidence[u], self._best_other(u)
        return (
            f"The model relies little on {u}: above chance it reaches {numbers.balance.value:.2f} "
            f"{_interval(numbers.balance)} of what {best} does ({_percent(numbers.alone)} alone), and leaving it out "
            f"costs {_percent(numbers.drop)} of accuracy. Either it is undertrained or it carries less information "
            f"than {best}; without training on it alone this cannot be told."
        )

    def _unclear(self, u: str) -> str:
        numbers = self.evidence[u]
        if numbers.samples < self.thresholds.min_samples:
            have = format_count(numbers.samples, "sample has", "samples have")
            return f"The evidence on {u} is insufficient: {have} it."
        fraction = numbers.balance if numbers.trained_alone is None else numbers.relative_recovery
        reason = (
            f"its fraction of {_estimate(fraction)} is known too loosely to compare it with "
            f"{self.thresholds.fraction:g}"
            if fraction is not None and math.isfinite(fraction.value)
            else f"trained alone it reaches {_percent_estimate(numbers.trained_alone)}, which may be no better than "
            f"the most frequent class, {format_percent(numbers.chance)}"
        )
        return f"The evidence on {u} is insufficient: {reason}."

    def _balanced(self, names: Sequence[str]) -> str:
        clauses = []
        for u in names:
            numbers = self.evidence[u]
            reference = "" if numbers.trained_alone is None else f" (trained alone {_percent(numbers.trained_alone)})"
            clauses.append(f"{u} reaches {_percent(numbers.alone)}{reference}")
        return f"Alone in the joint model {', '.join(clauses)}."

    def _best_other(self, u: str) -> str | None:
        """The best recovered of the other modalities.

        Where training alone is unknown, it is that with the best accuracy alone.
        """
        rivals = {v: numbers for v, numbers in self.evidence.items() if v != u}
        if not rivals:
            return None

        def recovery(v: str) -> float:
            numbers = rivals[v]
            if numbers.trained_alone is None or self.evidence[u].trained_alone is None:
                return numbers.alone.value
            attainable = numbers.trained_alone.value - numbers.chance
            return (numbers.alone.value - numbers.chance) / attainable if attainable > 0 else -math.inf

        return max(rivals, key=recovery)


def _percent(estimate: IntervalEstimate | None) -> str:
    return format_percent(None if estimate is None else estimate.value)


def _percent_estimate(estimate: IntervalEstimate | None) -> str:
    return "–" if estimate is None else estimate.percent


def _interval(estimate: IntervalEstimate) -> str:
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def _estimate(estimate: IntervalEstimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f} {_interval(estimate)}"
