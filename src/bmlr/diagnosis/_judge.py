"""Which modality is undertrained, and what could be tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import bmlr.methods
from bmlr._checks import check_integer, check_non_negative, check_unit_interval
from bmlr.diagnosis._measures import Estimate

Status = Literal["undertrained", "uninformative", "weak", "unused", "balanced", "unclear"]


Place = Literal["encoder", "decision", ""]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What the verdict takes as much or little.

    Attributes:
        share: A modality of which the joint model recovers less than this share, relative to the best recovered one, is
            behind, if the interval also excludes parity (1); mildly from 2 · share − 1 on. It is balanced at this
            share or above, if the interval stays above 2 · share − 1. 0.9 by default: on the ``synthetic`` set two
            equally easy modalities came to 0.94 and more, two equally hard ones to 0.86 and more, one held back by
            an easier one to 0.53 to 0.90 (four seeds; 1000 samples; the last by several ways of removal).
        margin: Accuracies closer than this are as good as equal: to the most frequent class, and of two probes. 0.05
            by default: the least that a few hundred samples can tell from chance.
        min_samples: Fewer samples give no verdict. 100 by default, where an accuracy of one half has a standard error
            of 0.05; bootstrap intervals of fewer are too narrow.
        level: Level of the intervals.
    """

    share: float = 0.9
    margin: float = 0.05
    min_samples: int = 100
    level: float = 0.95

    def __post_init__(self) -> None:
        check_unit_interval("share", self.share)
        check_non_negative("margin", self.margin)
        check_integer("min_samples", self.min_samples, 1)
        if not 0 < self.level < 1:
            raise ValueError(f"Parameter `level` should lie between 0 and 1. Found `level = {self.level}`.")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the verdict on one modality rests on.

    Attributes:
        samples: Samples that have the modality.
        chance: Rate of the most frequent class among them.
        alone: Accuracy of the modality alone in the joint model.
        drop: Accuracy lost where it is left out.
        balance: Its accuracy above chance as a share of that of the best modality.
        trained_alone: Accuracy after training on it alone; None if unknown.
        prediction_share: What the joint model recovers of that above chance, as a share of what it recovers of the
            modality it recovers best.
        encoder_gap: Probe accuracy on the encoder trained alone less that on the joint model's.
        encoder_share: What the joint training of the encoder gains a probe, as a share of what training alone gains.
    """

    samples: int
    chance: float
    alone: Estimate
    drop: Estimate
    balance: Estimate
    trained_alone: Estimate | None = None
    prediction_share: Estimate | None = None
    encoder_gap: Estimate | None = None
    encoder_share: Estimate | None = None


def judge(evidence: Evidence, thresholds: Thresholds) -> tuple[Status, Place]:
    """The status of a modality, and for an undertrained one where it is behind.

    * ``uninformative``: also trained alone it stays within ``margin`` of the most frequent class.
    * ``undertrained``: training alone reaches more than the joint model does. In the ``encoder``, where a probe on it
      is significantly, and by ``margin``, below one on the encoder trained alone, and gains less than ``share`` of
      what that one does over a probe on the untrained encoder; else in the
      ``decision`` (left open without probes), where the joint model's prediction from this modality alone recovers
      under ``share`` of what it recovers of the best recovered one.
    * ``balanced``: neither.
    * Without training alone: ``unused``, alone within ``margin`` of the most frequent class and no loss without it;
      ``weak``, alone under ``share`` of the best modality's accuracy above chance; the reason cannot be told.
    * ``unclear``: too few samples, or an interval on both sides of a threshold.

    Example:
        >>> evidence = Evidence(
        ...     1000, 0.1, alone=Estimate(0.45, 0.42, 0.48), drop=Estimate(0.06, 0.04, 0.08),
        ...     balance=Estimate(0.45, 0.4, 0.5), trained_alone=Estimate(0.7, 0.67, 0.73),
        ...     prediction_share=Estimate(0.6, 0.55, 0.65))
        >>> judge(evidence, Thresholds())
        ('undertrained', '')
    """
    if evidence.samples < thresholds.min_samples or not math.isfinite(evidence.alone.value):
        return "unclear", ""
    if evidence.trained_alone is None:
        return _without_reference(evidence, thresholds), ""
    if evidence.trained_alone.high < evidence.chance + thresholds.margin:
        return "uninformative", ""
    if _encoder_is_behind(evidence, thresholds):
        return "undertrained", "encoder"
    side = 0
    if evidence.trained_alone.low > evidence.chance and evidence.prediction_share is not None:
        side = _side(evidence.prediction_share, thresholds.share)
    if side < 0:
        return "undertrained", "" if evidence.encoder_gap is None else "decision"
    return ("balanced" if side > 0 else "unclear"), ""


def _encoder_is_behind(evidence: Evidence, thresholds: Thresholds) -> bool:
    gap, share = evidence.encoder_gap, evidence.encoder_share
    if gap is None or share is None:
        return False
    return gap.low > 0 and gap.value >= thresholds.margin and share.value < thresholds.share


def _without_reference(evidence: Evidence, thresholds: Thresholds) -> Status:
    limit = evidence.chance + thresholds.margin
    if evidence.alone.high < limit and not evidence.drop.low > 0:
        return "unused"
    side = _side(evidence.balance, thresholds.share)
    return "weak" if side < 0 else "balanced" if side > 0 else "unclear"


def _side(estimate: Estimate, share: float) -> int:
    """−1 for a share that is too small, 1 for one that is not, 0 where the interval leaves both open."""
    if estimate.value < share:
        return -1 if estimate.high < 1 else 0
    return 1 if estimate.low >= 2 * share - 1 else 0


def choose_methods(
    place: Sequence[Place], *, current: str | None, missing: bool, conflict: bool = False
) -> dict[str, str]:
    """Methods to try, and what each does, but the one in use and those that cannot be.

    Args:
        place: Where modalities are behind.
        current: Name of the method in use.
        missing: Some samples lack modalities.
        conflict: The gradients of fused and unimodal losses were seen to conflict.

    Example:
        >>> list(choose_methods(["decision"], current="BMLR", missing=False))
        ['UniformBaseline', 'OPM', 'DGL', 'OGMGE']
    """
    first = "encoder" if "encoder" in place else "decision"
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
