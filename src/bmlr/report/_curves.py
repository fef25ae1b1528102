"""Curves of a section as numbers for the page's script.

The script alone draws them: it reads out the values of an epoch by pointer and keyboard and follows the filter of
methods, neither of which an image does. ``bmlr.figures`` draws them for print.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bmlr.benchmark.statistics import estimate
from bmlr.report._sections import MethodGroup, Section
from bmlr.tasks import prediction_label


def section_curves(section: Section) -> dict[str, Any]:
    """Mean and std per epoch of every method and measure.

    The looks number the colours: 0 is the multimodal prediction's, a modality has the same one in every measure.
    """
    form, metric = section.form, section.form.name
    looks = {name: number for number, name in enumerate(section.modalities, start=1)}
    pairs = {f"val_ratio_{a}_{b}": f"{a}/{b}" for a, b in itertools.combinations(section.modalities, 2)}
    columns = {
        "score": {f"val_{metric}": (prediction_label("fused"), 0)}
        | {f"val_{metric}_{u}": (u, look) for u, look in looks.items()},
        "ratio": {column: (label, number) for number, (column, label) in enumerate(pairs.items(), start=1)},
        "share": {f"train_reshaped_{u}": (u, look) for u, look in looks.items()},
    }
    factors = {"score": form.factor, "ratio": 1.0, "share": 100.0}
    methods = []
    for group in section.groups:
        metrics = list(_usable_metrics(group).values())
        measures = {
            measure: [
                {"name": label, "look": look, **_curve(metrics, column, factors[measure])}
                for column, (label, look) in named.items()
                if metrics and all(column in table for table in metrics)
            ]
            for measure, named in columns.items()
        }
        methods.append(
            {
                "label": group.label,
                "score": {"title": f"validation {form.label}", "digits": form.digits, "rate": form.is_rate},
                "runs": len(metrics),
                "epochs": [int(epoch) + 1 for epoch in metrics[0]["epoch"]] if metrics else [],
                "measures": {measure: series for measure, series in measures.items() if series},
            }
        )
    return {"methods": methods}


def section_measures(curves: Mapping[str, Any]) -> set[str]:
    """Measures of at least one method of a section."""
    return {measure for method in curves["methods"] for measure in method["measures"]}


def _usable_metrics(group: MethodGroup) -> dict[str, pd.DataFrame]:
    """Readable metrics of a group's runs, by seed."""
    return {str(run.config["seed"]): run.metrics for run in group.runs if run.metrics is not None}


def _curve(metrics: Sequence[pd.DataFrame], column: str, factor: float) -> dict[str, list[float | None]]:
    """Mean and std per epoch; None where undefined."""
    mean: list[float | None] = []
    spread: list[float | None] = []
    for values in zip(*(table[column] for table in metrics), strict=True):
        if all(math.isfinite(value) for value in values):
            mean_value = estimate(factor * float(value) for value in values)
            mean.append(round(mean_value.mean, 5))
            spread.append(None if mean_value.std is None else round(mean_value.std, 5))
        else:
            mean.append(None)
            spread.append(None)
    return {"mean": mean, "spread": spread}
