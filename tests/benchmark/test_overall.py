"""Several comparisons in one table, and what it says."""

import dataclasses
from pathlib import Path

import pytest

from bmlr.benchmark.overall import overall_findings, overall_table
from bmlr.benchmark.statistics import Difference

KEPT = Path(__file__).parents[2] / "benchmarks" / "leaderboard"


@pytest.fixture
def comparisons(monkeypatch):
    """Three data sets with the rows Joint, BMLR and Ensemble, whose scores and differences the test sets."""
    monkeypatch.syspath_prepend(str(KEPT.parent))
    from leaderboard_kept import read_kept

    def some(name):
        comparison = read_kept(KEPT / f"{name}.json").comparison
        methods = [method for method in comparison.methods if method.label in {"Joint", "BMLR", "Ensemble"}]
        return dataclasses.replace(comparison, methods=tuple(methods), references={"ensemble": "Ensemble"})

    return {name: some(name) for name in ("wiki", "mfeat", "digits")}


def changed(comparison, scores, sides):
    """The comparison with these scores, and differences to the baseline on these sides of zero."""
    methods = []
    for method in comparison.methods:
        side = sides.get(method.label)
        own = (
            None if side is None else Difference(0.01 * side, 0.01 * side - 0.005, 0.01 * side + 0.005, "seeds", (1, 2))
        )
        fused = dataclasses.replace(method.fused, mean=scores[method.label])
        methods.append(dataclasses.replace(method, fused=fused, difference=own, over={}))
    return dataclasses.replace(comparison, methods=tuple(methods))


def test_findings_count_intervals_on_each_side_and_follow_the_ranks(comparisons):
    scores = [
        {"Joint": 0.5, "BMLR": 0.6, "Ensemble": 0.7},
        {"Joint": 0.5, "BMLR": 0.7, "Ensemble": 0.6},
        {"Joint": 0.5, "BMLR": 0.4, "Ensemble": 0.6},
    ]
    sides = [{"BMLR": 1, "Ensemble": 1}, {"BMLR": 1, "Ensemble": 1}, {"BMLR": -1, "Ensemble": 0}]
    made = {
        name: changed(comparison, *of)
        for (name, comparison), of in zip(comparisons.items(), zip(scores, sides, strict=True), strict=True)
    }
    # Ranks: Ensemble 1, 2, 1; BMLR 2, 1, 3; Joint 3, 3, 2.
    first, apart, above_joint, above_ensemble = overall_findings(made)
    assert first == "First by mean rank: `Ensemble` 1.3, `BMLR` 2.0, `Joint` 2.7. `Joint` has 2.7."
    assert apart == "Told apart from the first: none."
    assert (
        above_joint == "On how many of 3 data sets above Joint by an interval: `Ensemble` 2, `BMLR` 2. Below: `BMLR` 1."
    )
    assert above_ensemble == "On how many of 3 data sets above the ensemble by an interval: none. Below: none."
    table = overall_table(made).markdown()
    assert "| BMLR | <u>2.0</u> |" in table
    assert "| 2 / 1 | 0 / 0 |" in table
