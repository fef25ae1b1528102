"""A verdict in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bmlr.diagnosis._judge import Evidence, Place, Status, Thresholds, choose_methods, judge
from bmlr.diagnosis._measures import Estimate


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the numbers come to.

    Attributes:
        status: A word per modality, see :func:`judge`.
        place: Where an undertrained modality is behind: encoder, decision, or nothing where that is not known.
        paragraph: All of it in plain words: which modality, on what numbers that rests, what could be tried.
        methods: Names of methods of the library that could be tried, among :func:`bmlr.methods.available`.
    """

    status: dict[str, Status]
    place: dict[str, Place]
    paragraph: str
    methods: tuple[str, ...]

    def having(self, *status: Status) -> tuple[str, ...]:
        """The modalities with one of these words."""
        return tuple(u for u, word in self.status.items() if word in status)

    @property
    def undertrained(self) -> tuple[str, ...]:
        """The undertrained modalities."""
        return self.having("undertrained")


def write_verdict(
    evidence: Mapping[str, Evidence],
    thresholds: Thresholds,
    *,
    accuracy: Estimate,
    samples: int,
    method: str | None = None,
    missing: bool = False,
    conflict: Mapping[str, float] | None = None,
    can_probe: bool = False,
    shuffled: bool = False,
) -> Verdict:
    """Judge every modality and say so in words.

    Args:
        evidence: What is known of each modality.
        thresholds: What counts as much or little.
        accuracy: Accuracy of the fused prediction.
        samples: Number of samples.
        method: Name of the method in use.
        missing: Some samples lack modalities.
        conflict: Median cosine between fused and unimodal gradients during training, by modality.
        can_probe: Training alone can be had by a switch (``--probe``), which the advice then names.
        shuffled: Accuracies alone are by shuffling the others, which makes them too low.
    """
    judged = {u: judge(found, thresholds) for u, found in evidence.items()}
    status = {u: word for u, (word, _) in judged.items()}
    place = {u: where for u, (_, where) in judged.items()}
    verdict = Verdict(status, place, "", ())
    behind = verdict.undertrained
    writer = _Writer(evidence, verdict, thresholds, accuracy, samples, can_probe)
    remedies: dict[str, str] = {}
    if behind:
        conflicting = any(value < 0 for u, value in (conflict or {}).items() if u in behind)
        remedies = choose_methods([place[u] for u in behind], current=method, missing=missing, conflict=conflicting)
    sentences = [*writer.findings(), *writer.gradients(conflict or {}), *writer.advice(remedies)]
    if shuffled and verdict.having("undertrained", "weak"):
        sentences.insert(
            -1,
            "Shuffled inputs of the other modalities vote for classes of their own, which makes accuracies alone too "
            "low: see whether removal by the mean input says the same.",
        )
    return dataclasses.replace(verdict, paragraph=" ".join(sentences), methods=tuple(remedies))


class _Writer:
    """Puts the judgement into sentences."""

    def __init__(
        self,
        evidence: Mapping[str, Evidence],
        verdict: Verdict,
        thresholds: Thresholds,
        accuracy: Estimate,
        samples: int,
        can_probe: bool,
    ) -> None:
        self.evidence, self.verdict, self.thresholds = evidence, verdict, thresholds
        self.accuracy, self.samples, self.can_probe = accuracy, samples, can_probe

    def findings(self) -> list[str]:
        """What is the case, on which numbers."""
        verdict = self.verdict
        if self.samples < self.thresholds.min_samples:
            few = (
                f"The evidence is insufficient: {self.samples} samples are fewer than the "
                f"{self.thresholds.min_samples} a verdict needs, and the fused accuracy may lie anywhere from "
                f"{self.accuracy.low:.2f} to {self.accuracy.high:.2f}."
            )
            return [few]
        sentences = [self._undertrained(u) for u in verdict.undertrained]
        sentences += [self._uninformative(u) for u in verdict.having("uninformative")]
        sentences += [self._unused(u) for u in verdict.having("unused")]
        sentences += [self._weak(u) for u in verdict.having("weak")]
        sentences += [self._unclear(u) for u in verdict.having("unclear")]
        balanced = verdict.having("balanced")
        if balanced and not sentences:
            sentences = [f"No modality is undertrained. {self._balanced(balanced)}"]
        elif balanced:
            if not verdict.having("undertrained", "unclear", "weak", "unused"):
                sentences.insert(0, "No modality is undertrained.")
            sentences.append(self._balanced(balanced))
        return sentences

    def gradients(self, conflict: Mapping[str, float]) -> list[str]:
        """What was seen during training of the modalities that are behind."""
        return [
            f"During training the gradients of the fused and of its own loss on the encoder of {u} "
            f"{'conflicted' if conflict[u] < 0 else 'agreed'} (median cosine {conflict[u]:.2f})."
            for u in self.verdict.undertrained
            if u in conflict and math.isfinite(conflict[u])
        ]

    def advice(self, remedies: Mapping[str, str]) -> list[str]:
        """What could be tried."""
        verdict, sentences = self.verdict, []
        if behind := verdict.undertrained:
            tried = "; ".join(f"{name} ({words})" for name, words in remedies.items())
            sentences.append(f"Worth trying: {tried}.")
            sentences.append(f"Without another method: {self._plain_advice(behind)}.")
        if nothing := verdict.having("uninformative"):
            sentences.append(
                f"Balancing cannot help {_listed(nothing)} and may hurt the rest: check that its inputs are read and "
                "aligned with the targets, or leave it out."
            )
        if verdict.having("weak", "unused"):
            how = (
                "with --probe true"
                if self.can_probe
                else "with `reference` (accuracies of unimodal training) or `probe`"
            )
            sentences.append(f"To tell these apart compare with training on each modality alone: diagnose {how}.")
        if verdict.having("unclear"):
            sentences.append(
                f"More samples would settle it: {self.samples} were read, and intervals shrink with the square root of "
                "their number."
            )
        if set(verdict.status.values()) == {"balanced"}:
            sentences.append(
                "Balancing has little to add here; look to data, encoders and regularisation for better accuracy."
            )
        return sentences

    def _plain_advice(self, behind: Sequence[str]) -> str:
        verdict = self.verdict
        ahead = [u for u in verdict.status if u not in behind and u not in verdict.having("uninformative")]
        if any(verdict.place[u] == "encoder" for u in behind):
            slower = f" or {_listed(ahead)} a smaller one" if ahead else ""
            return (
                f"start from an encoder of {_listed(behind)} trained alone, give it a larger learning rate{slower}, "
                "or train longer"
            )
        hide = f"leave {_listed(ahead)} out of some training batches, " if ahead else ""
        return f"{hide}fit the decision layer anew on frozen encoders, or train longer"

    def _undertrained(self, u: str) -> str:
        found = self.evidence[u]
        best = self._best(u)
        basis = [
            f"alone in the joint model it reaches {found.alone.value:.3f}, trained alone {_value(found.trained_alone)}"
        ]
        if self.verdict.place[u] == "encoder":
            basis.append(
                f"a linear probe on its encoder is {_value(found.encoder_gap)} "
                f"{_interval(found.encoder_gap)} short of one on an encoder trained alone"
            )
        if found.prediction_share is not None and best is not None:
            basis.append(
                f"what the joint model recovers of this above chance is {_value(found.prediction_share)} "
                f"{_interval(found.prediction_share)} of what it recovers for {best}"
            )
        if self.verdict.place[u] == "encoder":
            where = "It is behind in its encoder."
        elif found.encoder_gap is None:
            where = "Whether its encoder or the decision layer is behind takes linear probes to tell."
        else:
            where = (
                "It is behind in what the decision layer makes of its features rather than in its encoder: a linear "
                f"probe falls short of one on an encoder trained alone by {_value(found.encoder_gap)} "
                f"{_interval(found.encoder_gap)} only."
            )
        share = found.prediction_share
        mild = share is not None and share.value >= 2 * self.thresholds.share - 1 and self.verdict.place[u] != "encoder"
        return f"{u} is {'mildly ' if mild else ''}undertrained: {'; '.join(basis)}. {where}"

    def _uninformative(self, u: str) -> str:
        found = self.evidence[u]
        return (
            f"{u} is uninformative, not undertrained: trained alone it reaches {_value(found.trained_alone)} "
            f"{_interval(found.trained_alone)}, where always answering the most frequent class reaches "
            f"{found.chance:.3f}."
        )

    def _unused(self, u: str) -> str:
        found = self.evidence[u]
        return (
            f"The model does not use {u}: alone it reaches {found.alone.value:.3f} {_interval(found.alone)}, the most "
            f"frequent class {found.chance:.3f}, and without it {found.drop.value:+.3f} {_interval(found.drop)} of "
            "accuracy is lost. Either it is undertrained or it says nothing."
        )

    def _weak(self, u: str) -> str:
        found, best = self.evidence[u], self._best(u)
        return (
            f"The model relies little on {u}: above chance it reaches {found.balance.value:.2f} "
            f"{_interval(found.balance)} of what {best} does ({found.alone.value:.3f} alone), and leaving it out costs "
            f"{found.drop.value:.3f} of accuracy. Either it is undertrained or it says less than {best}; without "
            "training on it alone this cannot be told."
        )

    def _unclear(self, u: str) -> str:
        found = self.evidence[u]
        if found.samples < self.thresholds.min_samples:
            return f"The evidence on {u} is insufficient: {found.samples} samples have it."
        share = found.balance if found.trained_alone is None else found.prediction_share
        reason = (
            f"its share of {_value(share)} {_interval(share)} is known too loosely to be held against "
            f"{self.thresholds.share:g}"
            if share is not None and math.isfinite(share.value)
            else f"trained alone it reaches {_value(found.trained_alone)} {_interval(found.trained_alone)}, which may "
            f"be no better than the most frequent class, {found.chance:.3f}"
        )
        return f"The evidence on {u} is insufficient: {reason}."

    def _balanced(self, names: Sequence[str]) -> str:
        parts = []
        for u in names:
            found = self.evidence[u]
            reference = "" if found.trained_alone is None else f" (trained alone {found.trained_alone.value:.3f})"
            parts.append(f"{u} reaches {found.alone.value:.3f}{reference}")
        return f"Alone in the joint model {', '.join(parts)}."

    def _best(self, u: str) -> str | None:
        others = {v: found for v, found in self.evidence.items() if v != u}
        if not others:
            return None
        known = {v: found.trained_alone for v, found in others.items() if found.trained_alone is not None}

        def recovered(v: str) -> float:
            found = others[v]
            if v not in known or self.evidence[u].trained_alone is None:
                return found.alone.value
            above = known[v].value - found.chance
            return (found.alone.value - found.chance) / above if above > 0 else -math.inf

        return max(others, key=recovered)


def _value(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.3f}"


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
