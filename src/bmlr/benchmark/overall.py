"""Comparisons on several data sets in one table, with mean ranks."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bmlr.benchmark._comparison import Comparison, MethodSummary
from bmlr.benchmark.statistics import Difference, RankTest, rank_test
from bmlr.tables import Cell, Table, format_count, mark_best
from bmlr.tasks import metric_form

#: Name of the reference whose method has another label on every data set.
_SINGLE = "best single modality"
_ALONE = "Unimodal:"


def overall_scores(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """Mean multimodal score of each method on each data set, by the metric's goodness: larger is better.

    The best single modality of each data set, chosen on validation, is one row; other single modalities have none.

    Args:
        comparisons: Comparisons by the name of the data set.

    Returns:
        A row per method, a column per data set; NaN where a method has no run.
    """
    return pd.DataFrame(
        {
            name: {
                label: metric_form(comparison.metric).goodness(method.fused.mean)
                for label, method in _methods(comparison).items()
            }
            for name, comparison in comparisons.items()
        }
    )


def overall_test(comparisons: Mapping[str, Comparison]) -> RankTest:
    """Mean ranks of the methods that all data sets have, with their critical difference."""
    return rank_test(overall_scores(comparisons).dropna())


def overall_table(comparisons: Mapping[str, Comparison]) -> Table:
    """Comparisons on several data sets as one table, a row per method.

    It shows the mean rank, the multimodal score on each data set, and on how many the method is above or below the
    baseline and the ensemble by an interval that excludes zero.

    Args:
        comparisons: Comparisons by the name of the data set.
    """
    test = overall_test(comparisons)
    methods = {name: _methods(comparison) for name, comparison in comparisons.items()}
    labels = list(dict.fromkeys(label for of_set in methods.values() for label in of_set))
    ranks = [Cell(f"{test.ranks[label]:.1f}" if label in test.ranks else "–") for label in labels]
    columns = [("method", [Cell(label) for label in labels]), ("mean rank", mark_best(ranks, lambda rank: -rank))]
    for name, comparison in comparisons.items():
        form = metric_form(comparison.metric)
        found = [methods[name].get(label) for label in labels]
        cells = [Cell("–" if one is None or not one.fused.runs else form.number(one.fused.mean)) for one in found]
        columns.append((form.head(name), mark_best(cells, form.goodness)))
    baseline = next(iter(comparisons.values())).baseline

    def counts(label: str, kind: str) -> str:
        sides = [
            _side(one.difference if kind == "baseline" else one.over.get(kind), comparisons[name])
            for name, of_set in methods.items()
            if (one := of_set.get(label)) is not None
        ]
        return f"{sides.count(1)} / {sides.count(-1)}"

    if baseline is not None:
        columns.append((f"above / below {baseline}", [Cell(counts(label, "baseline")) for label in labels]))
    kinds = dict.fromkeys(kind for comparison in comparisons.values() for kind in comparison.references)
    columns += [(f"above / below the {kind}", [Cell(counts(label, kind)) for label in labels]) for kind in kinds]
    return Table.from_columns(columns, _notes(test), "All data sets")


def _methods(comparison: Comparison) -> dict[str, MethodSummary]:
    """Methods by label, single modalities by the best of them."""
    best = comparison.references.get(_SINGLE)
    return {
        _SINGLE if method.label == best else method.label: method
        for method in comparison.methods
        if method.label == best or not method.label.startswith(_ALONE)
    }


def _side(difference: Difference | None, comparison: Comparison) -> int:
    """1 if an interval is on the better side of zero, −1 on the worse one, else 0."""
    return 0 if difference is None else int(metric_form(comparison.metric).goodness(difference.side))


def _notes(test: RankTest) -> list[str]:
    interval = "the 95 % interval of the difference (paired bootstrap over seeds and samples)"
    notes = [
        f"Above / below: data sets on which {interval} is on that side of zero.",
        f"Mean rank over {format_count(test.data_sets, 'data set')}, 1 for the best.",
    ]
    if test.critical_difference is not None and test.p_value is not None:
        notes.append(
            f"Friedman's test: p = {test.p_value:.2g}. Mean ranks that differ by less than "
            f"{test.critical_difference:.1f} are not told apart (Nemenyi, 95 %)."
        )
    return notes
