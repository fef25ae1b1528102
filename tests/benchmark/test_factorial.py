"""Tables, findings and figure of a factorial study, from files written here."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib import pyplot as plt

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

FILE = """
seeds: [1, 2]
baseline: OnlyTPO
against: [Joint]
factor_names: {video: video, noise: noise, width: width}
axes: {video: layers of video, width: width}
figure:
  - {to: Joint, rows: [OnlyTPO, BMLR]}
  - {to: OnlyTPO, rows: [BMLR]}
methods: {Joint: , OnlyTPO: , BMLR: }
sets:
  imbalance:
    data: synthetic
    factors:
      video: {0: {}, 4: {}}
      noise: {0: {}, 0.2: {}}
  width:
    data: synthetic
    shared: {cell: imbalance-video-4-noise-0, level: 8}
    factors:
      width: {4: {}}
"""
CELLS = [f"imbalance-video-{video}-noise-{noise}" for video in (0, 4) for noise in (0, 0.2)]


def difference(mean, half=0.01):
    return {
        "mean": mean, "low": mean - half, "high": mean + half, "over": "seeds", "seeds": [1, 2], "metric": "accuracy"
    }  # fmt: skip


def row(score, to_baseline=None, to_joint=None):
    return {
        "tuned": {}, "seeds": [1, 2], "failed": 0, "unfinished": 0, "epochs": 1,
        "fused": {"accuracy": [score, score]}, "unimodal": {"audio": [0.5, 0.5], "video": [0.25, 0.25]}, "ratio": {},
        "data_passes": [1.0, 1.0], "seconds": [1.0, 1.0], "over": {}, "difference": to_baseline,
        "against": {} if to_joint is None else {"Joint": to_joint},
    }  # fmt: skip


def write_cell(folder, name, levels, gain, lead):
    """A cell in which OnlyTPO gains on Joint, and BMLR leads OnlyTPO."""
    rows = {
        "Joint": row(0.5, difference(-gain)),
        "OnlyTPO": row(0.5 + gain, None, difference(gain)),
        "BMLR": row(0.5 + gain + lead, difference(lead), difference(gain + lead)),
    }
    comparison = {
        "data": "synthetic", "protocol": "clean", "samples": 100, "metric": "accuracy", "metrics": ["accuracy"],
        "constant_score": 0.1, "modalities": ["audio", "video"], "pairs": [], "baseline": "OnlyTPO", "references": {},
        "notes": [],
    }  # fmt: skip
    content = {
        "set": name, "entry": {}, "levels": levels, "seeds": [1, 2], "commit": "abc", "comparison": comparison,
        "versions": {"torch": "2", "device": "CPU"}, "rows": rows,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def factorial(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import factorial

    yield factorial
    plt.close("all")
    for name in ("factorial", "leaderboard", "leaderboard_kept"):
        sys.modules.pop(name, None)


@pytest.fixture
def study(factorial, tmp_path):
    for name, gain, lead in zip(CELLS, (0, 0.02, 0.05, -0.03), (0, 0.005, 0.03, -0.02), strict=True):
        _, _, video, _, noise = name.split("-")
        write_cell(tmp_path, name, {"video": video, "noise": noise}, gain, lead)
    return factorial.Study(yaml.safe_load(FILE), tmp_path)


def test_findings_count_intervals_that_exclude_zero(factorial, study):
    lines = factorial.findings(study).splitlines()
    assert lines[0] == "* 4 of 5 cells are complete. Left out, for they are not complete: `width-width-4`."
    assert lines[1] == "* To Joint: 6 of 8 intervals exclude zero; about 0 would by chance if nothing differed."
    assert lines[2] == (
        "    * `OnlyTPO`: above in 2 of 4 (video 0, noise 0.2; video 4, noise 0); below in 1 of 4 (video 4, noise "
        "0.2). Mean +1.0 points, from -3.0 to +5.0."
    )
    assert "`BMLR`: above in 2 of 4 (video 0, noise 0.2; video 4, noise 0); below in 1 of 4" in lines[3]
    assert "`BMLR`: above in 1 of 4 (video 4, noise 0); below in 1 of 4 (video 4, noise 0.2)" in lines[6]
    assert "* Points over OnlyTPO from video 0 to 4, noise 0.2: BMLR +0.5 to -2.0." in lines


def test_tables_mark_the_side_of_zero(factorial, study):
    table = factorial.difference_table(study, "OnlyTPO")
    assert table.heads[1] == "video 0, noise 0"
    marks = {row[0].text: [cell.mark for cell in row[1:]] for row in table.rows}
    assert marks == {"Joint": ["", "second", "second", "best"], "BMLR": ["", "", "best", "second"]}
    scores = factorial.score_table(study)
    assert [row[3].text for row in scores.rows] == ["50.0", "55.0", "58.0", "50.0", "25.0"]


def test_a_panel_per_second_factor_with_the_shared_cell(factorial, study, tmp_path):
    write_cell(tmp_path, "width-width-4", {"width": "4"}, 0.01, 0)
    study = factorial.Study(yaml.safe_load(FILE), tmp_path)
    panels = [(panel.factor, panel.title, panel.cells) for panel in study.panels()]
    assert panels == [
        ("video", "noise 0", {0: CELLS[0], 4: CELLS[2]}),
        ("video", "noise 0.2", {0: CELLS[1], 4: CELLS[3]}),
        ("width", "", {4: "width-width-4", 8: CELLS[2]}),
    ]
    figure = factorial.draw(study)
    (_, noisy, width), *_ = [figure.axes[start : start + 3] for start in (0, 3)]
    drawn = {line.get_label(): list(line.get_ydata()) for line in noisy.get_lines()}
    assert drawn["OnlyTPO"] == pytest.approx([2, -3])
    assert [tick.get_text() for tick in width.get_xticklabels()] == ["4", "8"]


def test_nothing_kept_says_what_to_do(factorial, tmp_path):
    with pytest.raises(SystemExit, match="make some by benchmarks/leaderboard"):
        factorial.Study(yaml.safe_load(FILE), tmp_path)


def test_the_page_is_made_of_the_files_kept(factorial, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "scripts"))
    import results_page

    monkeypatch.setattr(results_page, "IMAGES", tmp_path)
    command = [str(BENCHMARKS / "factorial.yaml"), "--keep", str(BENCHMARKS / "factorial"), "--out", str(tmp_path)]
    assert factorial.main(command) == 0
    page = BENCHMARKS.parent / "docs" / "factorial.md"
    assert results_page.page_text("factorial", tmp_path) == page.read_text(encoding="utf-8")
