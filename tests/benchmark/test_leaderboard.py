"""The leaderboard's command at a tiny size: runs, interruption, tables."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from bmlr.benchmark.contents import read_contents
from bmlr.benchmark.engines import LocalEngine
from bmlr.benchmark.statistics import rank_test
from inline import InlineEngine

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

FILE = """
seeds: [1, 2]
tuning: {trials: 2, seeds: [0], lr: "3e-4:1e-2:log", spaces: {BMLR: "alpha=0.25:4:log,beta=0:0.9"}}
baseline: Joint
against: [BMLR]
metrics: [nll, ece]
epochs_of_defaults: 70
methods: {Joint: , Unimodal: , Ensemble: , BMLR: , ReconBoost: }
sets:
  tiny:
    data: synthetic
    parameters: {num_classes: 3, samples: {train: 64, val: 30, test: 40}}
    model: {width: 2}
    trainer: {epochs: 2}
  later:
    data: synthetic
    factors:
      classes:
        3: {parameters: {num_classes: 3}}
        4: {parameters: {num_classes: 4}}
"""


class Cut(Exception):
    """The power fails."""


class FailingEngine(InlineEngine):
    """An engine that is cut off after some runs."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.left = runs

    def execute(self, tasks):
        for ended in super().execute(tasks):
            yield ended
            self.left -= 1
            if not self.left:
                raise Cut


@pytest.fixture
def leaderboard(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import leaderboard

    yield leaderboard
    for name in ("leaderboard", "leaderboard_kept", "leaderboard_tables"):
        sys.modules.pop(name, None)


def test_a_campaign_goes_on_where_it_was_cut_and_shows_only_what_is_complete(leaderboard, tmp_path, capsys):
    file, out = tmp_path / "board.yaml", tmp_path / "out"
    file.write_text(FILE)
    command = [str(file), "--out", str(out), "--only", "tiny"]
    for runs in (3, 12):  # in the search, then in the runs that are results
        with pytest.raises(Cut):
            leaderboard.main(command, FailingEngine(runs))
        assert not (out / "overall.md").exists()
    engine = InlineEngine()
    assert leaderboard.main(command, engine) == 0
    # Six rows, each with two trials and two seeds. A run under way when the power failed is made again.
    assert len(engine.made) in {24 - 15, 24 - 14, 24 - 13}
    trials = pd.read_csv(out / "tiny" / "tuning" / "trials.csv")
    assert trials.groupby("method").size().to_dict() == dict.fromkeys(
        ["Joint", "Unimodal:modality=audio", "Unimodal:modality=video", "Ensemble", "BMLR", "ReconBoost:t1=1,t2=1@2"], 2
    )
    # The first trial has the defaults, and all methods try the same learning rates.
    assert trials[trials["trial"] == 0]["optimizer.lr"].unique().tolist() == [1e-3]
    assert len(trials[trials["trial"] == 1]["optimizer.lr"].unique()) == 1
    assert trials.loc[(trials["method"] == "BMLR") & (trials["trial"] == 0), ["alpha", "beta"]].to_numpy().tolist() == [
        [1.0, 0.5]
    ]
    listed = json.loads((out / "tiny" / "rows.json").read_text())
    config = (out / "tiny" / "runs" / listed["BMLR"]["runs"][0] / "config.yaml").read_text()
    assert f"lr: {listed['BMLR']['tuned']['optimizer.lr']!r}" in config
    overall = (out / "overall.md").read_text()
    kept = json.loads((out / "kept" / "tiny.json").read_text())
    assert kept["rows"]["BMLR"]["tuned"] == listed["BMLR"]["tuned"]
    for number, name in enumerate(listed["BMLR"]["runs"]):
        result = json.loads((out / "tiny" / "runs" / name / "result.json").read_text())
        assert kept["rows"]["BMLR"]["fused"]["accuracy"][number] == pytest.approx(result["test"]["accuracy"], abs=1e-5)
        assert kept["rows"]["BMLR"]["fused"]["nll"][number] == pytest.approx(result["test"]["nll"], abs=1e-5)
    # Differences to a further row are those of the scores, and have an interval.
    against = {label: row["against"].get("BMLR") for label, row in kept["rows"].items()}
    assert against["BMLR"] is None
    first, other = (kept["rows"][label]["fused"]["accuracy"] for label in ("Joint", "BMLR"))
    assert against["Joint"]["mean"] == pytest.approx((sum(first) - sum(other)) / 2, abs=1e-4)
    assert against["Joint"]["low"] <= against["Joint"]["mean"] <= against["Joint"]["high"]
    assert "| best single modality |" in overall
    assert "mean rank" in overall
    findings = (out / "findings.md").read_text()
    assert findings.startswith("* First by mean rank: `")
    assert "On how many of 1 data set above Joint by an interval: " in findings
    more = (out / "tiny" / "more.md").read_text()
    assert "| lost without audio | lost without video |" in more
    contents = read_contents(out)
    assert contents.notes == ["Not complete, and left out: later-classes-3, later-classes-4."]
    assert len(contents.items) == 4

    engine = InlineEngine()
    assert leaderboard.main(command, engine) == 0
    assert engine.made == []
    assert (out / "overall.md").read_text() == overall


def test_the_page_is_made_of_the_files_kept(leaderboard, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "scripts"))
    import results_page

    monkeypatch.setattr(results_page, "IMAGES", tmp_path)
    kept = str(BENCHMARKS / "leaderboard")
    file = str(BENCHMARKS / "leaderboard.yaml")
    assert leaderboard.main([file, "--tables", "--keep", kept, "--out", str(tmp_path)], InlineEngine()) == 0
    page = BENCHMARKS.parent / "docs" / "results.md"
    assert results_page.page_text("results", tmp_path) == page.read_text(encoding="utf-8")


def test_a_dry_run_tells_runs_and_starts_none(leaderboard, tmp_path, capsys, monkeypatch):
    from bmlr.benchmark import _plan as plan_module

    cost = {"epoch_seconds": 1800.0, "weights": 1.0}
    monkeypatch.setattr(plan_module, "_measure_steps", lambda jobs, *_: [cost] * len(jobs))
    (tmp_path / "board.yaml").write_text(FILE)
    command = [str(tmp_path / "board.yaml"), "--out", str(tmp_path / "out"), "--only", "tiny", "--dry-run"]
    assert leaderboard.main([*command, "--methods", "Joint", "BMLR"], LocalEngine(2)) == 0
    # Two rows of two trials and two seeds, an hour each, two at a time.
    assert "| tiny | 2 | 2 | 8 | 0 | 4.0 h |" in capsys.readouterr().out
    assert not list(tmp_path.glob("out/**/result.json"))


def test_mean_ranks_and_their_critical_difference_by_hand():
    scores = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, 0.6], "b": [0.9, 0.7, 0.8, 0.6], "c": [0.8, 0.9, 0.7, 0.7], "d": [0.1, 0.2, 0.3, None]},
        index=["w", "x", "y", "z"],
    )
    found = rank_test(scores)
    # a: 1 2 3 4; b: 1 3 2 4; c: 2 1 3.5 3.5; d lacks a method.
    assert found.ranks.to_dict() == pytest.approx({"w": 4 / 3, "x": 2.0, "y": 8.5 / 3, "z": 11.5 / 3})
    assert found.data_sets == 3
    # Demšar's table of q for four methods gives 2.569; sqrt(4·5 / (6·3)) = 1.0541.
    assert found.critical_difference == pytest.approx(2.569 * 1.0541, abs=1e-3)
    assert rank_test(scores[["a"]]).critical_difference is None
