"""Judgement of each modality, and methods to try."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import bmlr.methods
from bmlr._checks import check_integer, check_non_negative, check_unit_interval
from bmlr.diagnosis._resampling import IntervalEstimate

Status = Literal["undertrained", "uninformative", "weak", "unused", "balanced", "unclear"]
Location = Literal["encoder", "decision", ""]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Limits of the verdict and options of its intervals.

    Attributes:
        fraction: A modality is behind if its recovery relative to the best recovered modality is below this fraction
            and the interval excludes parity (1); mildly behind from 2 · fraction − 1 on. It is balanced at this
            fraction or above, if the interval stays above 2 · fraction − 1. 0.9 by default: on the ``synthetic`` set
            two equally easy modalities came to 0.94 and more, two equally hard ones to 0.86 and more, one held back by
            an easier one to 0.53 to 0.90 (four seeds; 1000 samples; the last by several ways of removal).
        margin: Smallest relevant difference of accuracies: to the most frequent class, and between two probes. 0.05 by
            default: the smallest difference from chance that a few hundred samples can show.
        min_samples: Fewer samples give no verdict. 100 by default: an accuracy of one half then has a standard error
            of 0.05; bootstrap intervals of fewer samples are too narrow.
        level: Level of the intervals.
        n_resamples: Bootstrap resamples of the intervals.
    """

    fraction: float = 0.9
    margin: float = 0.05
    min_samples: int = 100
    level: float = 0.95
    n_resamples: int = 1000

    def __post_init__(self) -> None:
        check_unit_interval("fraction", self.fraction)
        check_non_negative("margin", self.margin)
        check_integer("min_samples", self.min_samples, 1)
        check_integer("n_resamples", self.n_resamples, 100)
        if not 0 < self.level < 1:
            raise ValueError(f"Parameter `level` should lie between 0 and 1. Found `level = {self.level}`.")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Numbers behind the verdict on one modality.

    Attributes:
        samples: Number of samples with the modality.
        chance: Rate of the most frequent class among them.
        alone: Accuracy of the modality alone in the joint model.
        drop: Accuracy lost without it.
        balance: Its accuracy above chance relative to that of the best modality.
        trained_alone: Accuracy after training on it alone; None if unknown.
        relative_recovery: Fraction of that above chance recovered by the joint model, relative to the modality
            recovered best.
        encoder_gap: Probe accuracy on the encoder trained alone less that on the joint one.
        encoder_fraction: Gain of a probe by joint training of the encoder relative to its gain by training alone.
    """

    samples: int
    chance: float
    alone: IntervalEstimate
    drop: IntervalEstimate
    balance: IntervalEstimate
    trained_alone: IntervalEstimate | None = None
    relative_recovery: IntervalEstimate | None = None
    encoder_gap: IntervalEstimate | None = None
    encoder_fraction: IntervalEstimate | None = None


def judge(evidence: Evidence, thresholds: Thresholds) -> tuple[Status, Location]:
    """Status of a modality, and the location an undertrained one is behind.

    * ``uninformative``: also trained alone it stays within ``margin`` of the most frequent class.
    * ``undertrained``: training alone reaches more than the joint model. Behind in the ``encoder``, if a probe on it is
      significantly, and by ``margin``, below one on the encoder trained alone, and gains over a probe on the untrained
      encoder less than ``fraction`` of the gain by training alone. Otherwise behind in the ``decision`` (left open
      without probes), if the joint model's recovery of this modality is below ``fraction`` of that of the best one.
    * ``balanced``: neither.
    * Without training alone: ``unused``, alone within ``margin`` of the most frequent class and no loss without it;
      ``weak``, alone under ``fraction`` of the best modality's accuracy above chance, for an unknown reason.
    * ``unclear``: too few samples, or an interval on both sides of a threshold.

    Example:
        >>> evidence = Evidence(
        ...     1000, 0.1, alone=IntervalEstimate(0.45, 0.42, 0.48), drop=IntervalEstimate(0.06, 0.04, 0.08),
        ...     balance=IntervalEstimate(0.45, 0.4, 0.5), trained_alone=IntervalEstimate(0.7, 0.67, 0.73),
        ...     relative_recovery=IntervalEstimate(0.6, 0.55, 0.65))
        >>> judge(evidence, Thresholds())
        ('undertrained', '')
    """
    if evidence.samples < thresholds.min_samples or not math.isfinite(evidence.alone.value):
        return "unclear", ""
    if evidence.trained_alone is None:
        return _judge_without_reference(evidence, thresholds), ""
    if evidence.trained_alone.high < evidence.chance + thresholds.margin:
        return "uninformative", ""
    if _encoder_is_behind(evidence, thresholds):
        return "undertrained", "encoder"
    side = 0
    # Of a modality that may be no better than chance, a recovered fraction is noise.
    if evidence.trained_alone.low > evidence.chance and evidence.relative_recovery is not None:
        side = _side(evidence.relative_recovery, thresholds.fraction)
    if side < 0:
        return "undertrained", "" if evidence.encoder_gap is None else "decision"
    return ("balanced" if side > 0 else "unclear"), ""


def _encoder_is_behind(evidence: Evidence, thresholds: Thresholds) -> bool:
    gap, fraction = evidence.encoder_gap, evidence.encoder_fraction
    if gap is None or fraction is None:
        return False
    return gap.low > 0 and gap.value >= thresholds.margin and fraction.value < thresholds.fraction


def _judge_without_reference(evidence: Evidence, thresholds: Thresholds) -> Status:
    limit = evidence.chance + thresholds.margin
    if evidence.alone.high < limit and not evidence.drop.low > 0:
        return "unused"
    side = _side(evidence.balance, thresholds.fraction)
    return "weak" if side < 0 else "balanced" if side > 0 else "unclear"


def _side(estimate: IntervalEstimate, fraction: float) -> int:
    """Side of the threshold an estimate is on.

    −1 is below, 1 above; 0 if the interval allows both.
    """
    if estimate.value < fraction:
        return -1 if estimate.high < 1 else 0
    return 1 if estimate.low >= 2 * fraction - 1 else 0


def choose_methods(
    locations: Sequence[Location], *, current: str | None, missing: bool, conflict: bool = False
) -> dict[str, str]:
    """Methods to try and their effects.

    The current method and inapplicable ones are left out.

    Args:
        locations: Locations the undertrained modalities are behind in.
        current: Name of the method in use.
        missing: Some samples lack modalities.
        conflict: Gradients of multimodal and unimodal losses conflicted.

    Example:
        >>> list(choose_methods(["decision"], current="BMLR", missing=False))
        ['UniformBaseline', 'OPM', 'DGL', 'OGMGE']
    """
    first = "encoder" if "encoder" in locations else "decision"
    remedies = {
        name: method.remedy
        for name in bmlr.methods.available()
        if (method := bmlr.methods.get(name)).remedy is not None
        and name != current
        and not (missing and method.needs_all_modalities)
    }
    ranked = sorted(
        ((name, remedy) for name, remedy in remedies.items() if remedy is not None),
        key=lambda item: (not (conflict and item[1].resolves_conflict), item[1].target != first, item[1].rank),
    )
    return {name: remedy.action for name, remedy in ranked[:4]}
