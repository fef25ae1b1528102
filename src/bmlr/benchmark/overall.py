"""Comparisons on several data sets in one table, with mean ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from bmlr.benchmark._comparison import Comparison, MethodSummary
from bmlr.benchmark.statistics import RankTest, rank_test
from bmlr.tables import Cell, Table, format_count, list_first, mark_best
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
    for name, sides in _sides(comparisons).items():
        cells = [Cell(f"{sides[label].count(1)} / {sides[label].count(-1)}") for label in labels]
        columns.append((f"above / below {name}", cells))
    return Table.from_columns(columns, _notes(test), "All data sets")


def overall_findings(comparisons: Mapping[str, Comparison]) -> list[str]:
    """The table in sentences: which methods lead by mean rank, and which differ from those that all are compared with.

    Args:
        comparisons: Comparisons by the name of the data set.
    """
    test = overall_test(comparisons)
    ranks = test.ranks.sort_values(kind="stable")
    listed = list_first([f"`{label}` {rank:.1f}" for label, rank in ranks.items()])
    baseline = next(iter(comparisons.values())).baseline
    lines = [f"First by mean rank: {listed}."]
    if baseline is not None and baseline in ranks:
        lines[0] += f" `{baseline}` has {ranks[baseline]:.1f}."
    if test.critical_difference is not None:
        apart = [f"`{label}`" for label, rank in ranks.items() if rank - ranks.iloc[0] >= test.critical_difference]
        lines.append(f"Told apart from the first: {list_first(apart) or 'none'}.")

    def most(sides: Mapping[str, list[int]], side: int) -> str:
        numbers = Counter({str(label): sides[str(label)].count(side) for label in ranks.index})
        return list_first([f"`{label}` {number}" for label, number in numbers.most_common() if number]) or "none"

    of = format_count(len(comparisons), "data set")
    lines += [
        f"On how many of {of} above {name} by an interval: {most(sides, 1)}. Below: {most(sides, -1)}."
        for name, sides in _sides(comparisons).items()
    ]
    return lines


def _sides(comparisons: Mapping[str, Comparison]) -> dict[str, dict[str, list[int]]]:
    """On which side of the baseline and of each reference the methods are.

    Returns:
        By what they are compared with and by method, for each data set that has the method: 1 if it is better by an
        interval, −1 if worse, else 0.
    """
    baseline = next(iter(comparisons.values())).baseline
    kinds = dict.fromkeys(kind for comparison in comparisons.values() for kind in comparison.references)
    found: dict[str, dict[str, list[int]]] = {}
    for comparison in comparisons.values():
        goodness = metric_form(comparison.metric).goodness
        for label, method in _methods(comparison).items():
            differences = {} if baseline is None else {baseline: method.difference}
            differences |= {f"the {kind}": method.over.get(kind) for kind in kinds}
            for name, difference in differences.items():
                side = 0 if difference is None else int(goodness(difference.side))
                found.setdefault(name, {}).setdefault(label, []).append(side)
    return found


def _methods(comparison: Comparison) -> dict[str, MethodSummary]:
    """Methods by label, single modalities by the best of them."""
    best = comparison.references.get(_SINGLE)
    return {
        _SINGLE if method.label == best else method.label: method
        for method in comparison.methods
        if method.label == best or not method.label.startswith(_ALONE)
    }


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
