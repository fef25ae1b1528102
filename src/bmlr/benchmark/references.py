"""What every multimodal method has to beat: the best single modality, and the ensemble of single modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bmlr.benchmark.statistics import estimate
from bmlr.runs import RunRecord
from bmlr.tasks import metric_form

#: Method whose runs make a reference, by the name of the reference.
_METHODS = {"best single modality": "bmlr.methods.Unimodal", "ensemble": "bmlr.methods.Ensemble"}


def references(groups: Mapping[str, Sequence[RunRecord]]) -> dict[str, str]:
    """Labels of the runs that others are measured by, among groups of runs.

    Of several, such as the modalities, it is the one of the best mean validation score, never of the test split.

    Args:
        groups: Runs by label.

    Returns:
        Label by the name of the reference: best single modality, ensemble; those without a finished run are left out.
    """
    found = {}
    for name, path in _METHODS.items():
        scores = {label: _validation(members) for label, members in groups.items() if _is_of(members, path)}
        defined = {label: score for label, score in scores.items() if score is not None}
        if defined:
            found[name] = max(defined, key=lambda label: defined[label])
    return found


def reference_note(name: str, label: str) -> str:
    """What a reference is, in a sentence."""
    how = ", chosen on validation" if name == "best single modality" else ""
    return f"The {name} is {label}{how}."


def _is_of(members: Sequence[RunRecord], path: str) -> bool:
    return all((record.config.get("method") or {}).get("class_path") == path for record in members)


def _validation(members: Sequence[RunRecord]) -> float | None:
    """Mean validation score, larger for better; None without any."""
    values = []
    for record in members:
        if record.result is not None:
            metric = record.result["monitor"]
            values.append(metric_form(metric).goodness(float(record.result["validation"][metric])))
    mean = estimate(values)
    return mean.mean if mean.runs else None
