"""Differences of methods to a baseline, and the conclusion in sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bmlr.benchmark.statistics import Difference, difference_of, estimate
from bmlr.data.store import describe_size
from bmlr.report._sections import MethodGroup, Section, isolate
from bmlr.runs import RunRecord
from bmlr.tables import format_mean, format_percent

#: Methods up to which each has a sentence of its own.
_SENTENCES = 5
#: Methods up to which a count names them.
_NAMED = 6

#: Difference to the baseline by label of a method, or the reason why there is none.
Differences = Mapping[str, Difference | str]


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """The result of a section in sentences.

    Attributes:
        statements: Label of each method and what is said of it.
        remarks: Sentences on all methods, and on what cannot be told.
    """

    statements: Sequence[tuple[str, str]]
    remarks: Sequence[str]


def differences_to(section: Section, baseline: MethodGroup | None) -> dict[str, Difference | str]:
    """Differences of all other methods to a baseline; empty without one."""
    differences: dict[str, Difference | str] = {}
    for group in section.groups if baseline is not None else ():
        if group is baseline or baseline is None:
            continue
        try:
            differences[group.label] = difference_of(group.runs, baseline.runs) or "no seed in common"
        except (OSError, ValueError) as error:
            differences[group.label] = " ".join(str(error).split())
    return differences


def conclude(section: Section, baseline: MethodGroup | None, differences: Differences) -> Conclusion:
    """State every method's accuracy and its difference to the baseline.

    Many methods are counted, and the best of them stated.
    """
    compared = [group for group in section.groups if group is not baseline]
    ranked = sorted(compared, key=lambda group: -_mean(group))
    shown = ranked if len(ranked) <= _SENTENCES else ranked[:3]
    statements = [] if baseline is None else [(baseline.label, f"{_accuracies(section, baseline)}.")]
    for group in shown:
        text = _accuracies(section, group, short=baseline is not None)
        if baseline is not None:
            text += f", {_difference_text(group, baseline, differences[group.label], section.modalities)}"
        else:
            points = 100 * (_mean(group) - section.majority)
            text += f"; {abs(points):.1f} points {'above' if points >= 0 else 'below'} the majority rate"
        statements.append((group.label, f"{text}."))
    remarks = _counts(ranked, baseline, differences) if baseline is not None and len(ranked) > len(shown) else []
    return Conclusion(statements, [*remarks, *_limits(section, baseline)])


def _limits(section: Section, baseline: MethodGroup | None) -> list[str]:
    """Sentences on the limits of the runs."""
    remarks = []
    if baseline is None and len(section.groups) == 1:
        remarks.append("There is no other method to compare it with.")
    elif baseline is None:
        remarks.append("There is no run of Joint to compare with; --baseline names another method.")
    elif len(section.groups) == 1:
        remarks.append(f"There is no method to compare {baseline.label} with.")
    if (size := describe_size("test", section.groups[0].runs[0].finished_result["samples"]["test"])) is not None:
        remarks.append(size)
    if max(len(group.runs) for group in section.groups) == 1:
        only = len(section.groups) == 1
        seeds = f"With one run{'' if only else ' of each method'}, this cannot tell how much results vary with the seed"
        remarks.append(f"{seeds}{'' if only else ', nor whether a difference is one of seeds'}.")
    return remarks


def _counts(groups: Sequence[MethodGroup], baseline: MethodGroup, differences: Differences) -> list[str]:
    """Count the methods above and below the baseline."""
    above, below, unclear = [], [], 0
    for group in groups:
        difference = differences[group.label]
        if isinstance(difference, str) or difference.low is None or difference.high is None:
            unclear += 1
        elif difference.low > 0:
            above.append(f"{group.label} {100 * difference.mean:+.1f}")
        elif difference.high < 0:
            below.append(f"{group.label} {100 * difference.mean:+.1f}")
        else:
            unclear += 1
    counts = []
    for side, names in (("above", above), ("below", below)):
        named = f" ({', '.join(names)})" if 0 < len(names) <= _NAMED else ""
        counts.append(f"{len(names) or 'none'} {'is' if len(names) < 2 else 'are'} {side}{named}")
    remark = f"Of {len(groups)} methods, {' and '.join(counts)} {baseline.label} by an interval that excludes zero"
    remark += f"; of {unclear} it cannot be told." if unclear else "."
    return [remark, "Where methods do not differ, about one interval in twenty excludes zero all the same."]


def _difference_text(
    group: MethodGroup, baseline: MethodGroup, difference: Difference | str, modalities: Sequence[str]
) -> str:
    if isinstance(difference, str):
        return f"not comparable with {baseline.label}: {difference.rstrip('.')}"
    points = round(100 * difference.mean, 1)
    side = "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
    text = f"{side} {baseline.label}"
    if difference.low is None or difference.high is None:
        text += ", without an interval"
    else:
        includes = difference.low <= 0 <= difference.high
        text += f" {difference.text(mean=False)}, the interval {'includes' if includes else 'excludes'} zero"
    changes = []
    for name in modalities:
        gain = _gain(group.runs, baseline.runs, name, difference.seeds)
        changes += [] if gain is None else [f"{isolate(name)} {100 * gain:+.1f}"]
    return f"{text}; {', '.join(changes)}" if changes else text


def _gain(
    runs: Sequence[RunRecord], baseline: Sequence[RunRecord], modality: str, seeds: Sequence[int]
) -> float | None:
    """Mean difference of a modality's accuracy over common seeds."""
    means = []
    for records in (runs, baseline):
        values = [_unimodal(record, modality) for record in records if record.config["seed"] in seeds]
        if not values or None in values:
            return None
        means.append(estimate(values).mean)
    return means[0] - means[1]


def _accuracies(section: Section, group: MethodGroup, *, short: bool = False) -> str:
    """Fused accuracy with its spread, and unless ``short`` those of the modalities."""
    fused = estimate(run.finished_result["test"]["accuracy"] for run in group.runs)
    text = f"{format_mean(fused.mean, fused.std)} %"
    if short:
        return text
    text += f" over {len(group.runs)} seeds" if len(group.runs) > 1 else " in one run"
    for name in section.modalities:
        alone = estimate(_unimodal(run, name) for run in group.runs)
        text += f", {isolate(name)} {format_percent(alone.mean)}" if alone.runs else ""
    return text


def _unimodal(run: RunRecord, modality: str) -> float | None:
    value = run.finished_result["test"]["unimodal_accuracy"].get(modality)
    return None if value is None or math.isnan(value) else float(value)


def _mean(group: MethodGroup) -> float:
    return estimate(run.finished_result["test"]["accuracy"] for run in group.runs).mean
