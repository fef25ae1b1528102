"""Differences of methods to a baseline, and the conclusion in sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bmlr.benchmark.statistics import Difference, difference_of, estimate
from bmlr.data.store import describe_size
from bmlr.report._sections import MethodGroup, Section, isolate
from bmlr.runs import RunRecord
from bmlr.tables import format_mean

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
    """State every method's score and its difference to the baseline.

    Many methods are counted, and the best of them stated.
    """
    compared = [group for group in section.groups if group is not baseline]
    ranked = sorted(compared, key=lambda group: -section.form.goodness(_mean(section, group)))
    shown = ranked if len(ranked) <= _SENTENCES else ranked[:3]
    statements = [] if baseline is None else [(baseline.label, f"{_scores(section, baseline)}.")]
    for group in shown:
        text = _scores(section, group, short=baseline is not None)
        if baseline is not None:
            text += f", {_difference_text(section, group, baseline, differences[group.label])}"
        else:
            than = "the majority rate" if section.form.name == "accuracy" else "that of a constant prediction"
            gain = _mean(section, group) - section.constant
            text += f"; {_amount(section, gain)} {'above' if gain >= 0 else 'below'} {than}"
        statements.append((group.label, f"{text}."))
    remarks = (
        _counts(section, ranked, baseline, differences) if baseline is not None and len(ranked) > len(shown) else []
    )
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
    samples = section.groups[0].runs[0].finished_result["samples"]["test"]
    if section.form.name == "accuracy" and (size := describe_size("test", samples)) is not None:
        remarks.append(size)
    if max(len(group.runs) for group in section.groups) == 1:
        only = len(section.groups) == 1
        seeds = f"With one run{'' if only else ' of each method'}, this cannot tell how much results vary with the seed"
        remarks.append(f"{seeds}{'' if only else ', nor whether a difference is one of seeds'}.")
    return remarks


def _counts(
    section: Section, groups: Sequence[MethodGroup], baseline: MethodGroup, differences: Differences
) -> list[str]:
    """Count the methods above and below the baseline."""
    above, below, unclear = [], [], 0
    for group in groups:
        difference = differences[group.label]
        if isinstance(difference, str) or not difference.side:
            unclear += 1
        elif difference.side > 0:
            above.append(f"{group.label} {section.form.number(difference.mean, signed=True)}")
        else:
            below.append(f"{group.label} {section.form.number(difference.mean, signed=True)}")
    counts = []
    for side, names in (("above", above), ("below", below)):
        named = f" ({', '.join(names)})" if 0 < len(names) <= _NAMED else ""
        counts.append(f"{len(names) or 'none'} {'is' if len(names) < 2 else 'are'} {side}{named}")
    remark = f"Of {len(groups)} methods, {' and '.join(counts)} {baseline.label} by an interval that excludes zero"
    remark += f"; of {unclear} it cannot be told." if unclear else "."
    return [remark, "Where methods do not differ, about one interval in twenty excludes zero all the same."]


def _amount(section: Section, difference: float) -> str:
    """Size of a difference, of rates in points."""
    return f"{section.form.number(abs(difference))}{' points' if section.form.is_rate else ''}"


def _difference_text(section: Section, group: MethodGroup, baseline: MethodGroup, difference: Difference | str) -> str:
    if isinstance(difference, str):
        return f"not comparable with {baseline.label}: {difference.rstrip('.')}"
    shown = round(section.form.factor * difference.mean, section.form.digits)
    amount = _amount(section, difference.mean)
    side = "level with" if shown == 0 else f"{amount} {'above' if shown > 0 else 'below'}"
    text = f"{side} {baseline.label}"
    if difference.low is None or difference.high is None:
        text += ", without an interval"
    else:
        includes = difference.low <= 0 <= difference.high
        text += f" {difference.text(mean=False)}, the interval {'includes' if includes else 'excludes'} zero"
    changes = []
    for name in section.modalities:
        gain = _gain(section, (group.runs, baseline.runs), name, difference.seeds)
        changes += [] if gain is None else [f"{isolate(name)} {section.form.number(gain, signed=True)}"]
    return f"{text}; {', '.join(changes)}" if changes else text


def _gain(
    section: Section, runs: tuple[Sequence[RunRecord], Sequence[RunRecord]], modality: str, seeds: Sequence[int]
) -> float | None:
    """Mean difference of a modality's score to that of a baseline, over common seeds."""
    means = []
    for records in runs:
        values = [_unimodal(section, record, modality) for record in records if record.config["seed"] in seeds]
        if not values or None in values:
            return None
        means.append(estimate(values).mean)
    return means[0] - means[1]


def _scores(section: Section, group: MethodGroup, *, short: bool = False) -> str:
    """Multimodal score with its spread, and unless ``short`` those of the modalities."""
    form = section.form
    fused = estimate(run.finished_result["test"][form.name] for run in group.runs)
    text = format_mean(fused.mean, fused.std, factor=form.factor, digits=form.digits) + (" %" if form.is_rate else "")
    text = text if form.name == "accuracy" else f"{form.title} {text}"
    if short:
        return text
    text += f" over {len(group.runs)} seeds" if len(group.runs) > 1 else " in one run"
    for name in section.modalities:
        alone = estimate(_unimodal(section, run, name) for run in group.runs)
        text += f", {isolate(name)} {form.text(alone.mean)}" if alone.runs else ""
    return text


def _unimodal(section: Section, run: RunRecord, modality: str) -> float | None:
    value = run.finished_result["test"][f"unimodal_{section.form.name}"].get(modality)
    return None if value is None or math.isnan(value) else float(value)


def _mean(section: Section, group: MethodGroup) -> float:
    return estimate(run.finished_result["test"][section.form.name] for run in group.runs).mean
