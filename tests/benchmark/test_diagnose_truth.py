"""The diagnosis against the truth, at a tiny size, and how its verdicts are counted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_factorial import difference, write_cell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def truth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import diagnose_truth

    yield diagnose_truth
    for name in ("diagnose_truth", "factorial", "leaderboard", "leaderboard_kept"):
        sys.modules.pop(name, None)


def diagnosis(*undertrained, weak=(), methods=(), mild=False):
    verdict = SimpleNamespace(undertrained=undertrained, methods=methods, with_status=lambda *_: weak)
    recovery = SimpleNamespace(relative_recovery=SimpleNamespace(value=0.5))
    paragraph = " ".join(f"{name} is {'mildly ' if mild else ''}undertrained: …" for name in undertrained)
    return SimpleNamespace(verdict=verdict, modalities={"audio": recovery, "video": recovery}, paragraph=paragraph)


def test_verdicts_are_held_against_the_construction(truth):
    hard = truth.Case({"audio": 0, "video": 4}, ["video"])
    even = truth.Case({"audio": 0, "video": 0})
    weak = [diagnosis(weak=("video",))] * 4
    of_hard = truth.Verdicts(
        hard, [diagnosis("video"), diagnosis("audio"), diagnosis(), diagnosis("audio", "video")], weak
    )
    assert (of_hard.right, of_hard.wrong, of_hard.missed) == (1, 2, 2)
    of_even = truth.Verdicts(even, [diagnosis(), diagnosis("video"), diagnosis("audio", mild=True)], [])
    table = truth.verdict_table([of_hard, of_even])
    assert [cell.text for cell in table.rows[0]] == [
        "audio 0, video 4", "video", "1 of 4", "2", "2", "video 4", "audio 0.50, video 0.50"
    ]  # fmt: skip
    (note,) = table.notes
    assert "exactly the right ones are named in 1 of 4 verdicts." in note
    assert "Where none is, one is named in 2 of 3, mildly in 1 of these." in note


def test_advice_is_held_against_unbalanced_sets(truth, tmp_path):
    for name, video, gain in (("even", 0, 0.05), ("hard", 4, 0.05), ("harder", 6, -0.05)):
        write_cell(tmp_path, name, {}, gain, 0)
        content = json.loads((tmp_path / f"{name}.json").read_text())
        content["entry"] = {"data": "synthetic", "parameters": {"difficulty": {"audio": 0, "video": video}}}
        if name == "harder":  # a set of which joint training is the baseline
            content["comparison"]["baseline"] = "Joint"
            content["rows"]["OnlyTPO"]["difference"] = difference(-0.05)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    kept = truth.unbalanced_sets([tmp_path])
    assert list(kept) == ["hard", "harder"]
    found = truth.Verdicts(
        truth.Case({"audio": 0, "video": 4}, ["video"]), [diagnosis("video", methods=("OnlyTPO", "OPM"))] * 2, []
    )
    rows = [[cell.text for cell in row] for row in truth.advice_table([found], kept).rows]
    assert rows == [["OnlyTPO", "2", "2", "1", "0", "1", "-5.0 to +5.0"], ["OPM", "2", "0", "0", "0", "0", "–"]]


def test_runs_are_diagnosed(truth, tmp_path, capsys):
    case = truth.Case({"audio": 0, "video": 1}, ["video"])
    command = ["--seeds", "0", "--runs", str(tmp_path), "--epochs", "1", "--train", "128", "--val", "120"]
    assert truth.main(command, [case]) == 0
    out = capsys.readouterr().out
    assert "| audio 0, video 1 | video | " in out
    assert "| advised method |" in out
    assert len(list(tmp_path.glob("*/result.json"))) == 3
