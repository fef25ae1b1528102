import json
import math

import numpy as np
import pytest
import torch

from bmlr.benchmark.statistics import bootstrap_difference
from bmlr.report import write_report
from bmlr.report._differences import differences_to
from bmlr.report._page import _find_baseline
from bmlr.report._sections import make_sections
from bmlr.report._tables import method_table
from bmlr.runs import PredictionTable, find_runs
from bmlr.runs.layout import PREDICTIONS
from fabric import make_run
from html_page import Page


def table_of(*folders, baseline=None):
    """Texts and marks of the methods' table, by method and head."""
    runs = find_runs(folders)
    (section,), _ = make_sections(runs)
    group = _find_baseline(section, baseline) if baseline else None
    table = method_table(section, group, differences_to(section, group))
    return {row[0].text: dict(zip(table.heads, row, strict=True)) for row in table.rows}


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_methods_are_means_over_seeds_with_best_and_second_marked(tmp_path):
    make_run(tmp_path / "a", "Joint", 0, fused=0.70, audio=0.30, image=0.60)
    make_run(tmp_path / "b", "Joint", 1, fused=0.74, audio=0.30, image=0.60)
    make_run(tmp_path / "c", "BMLR", 0, fused=0.80, audio=0.50, image=0.50)
    make_run(tmp_path / "d", "UniformBaseline", 0, fused=0.60, audio=0.54, image=0.50)
    table = table_of(tmp_path)
    assert list(table) == ["Joint", "UniformBaseline", "BMLR"]  # the order of the registry
    assert table["Joint"]["Multimodal (%)"].text == "72.0 ± 2.8"
    assert table["Joint"]["Runs"].text == "2"
    assert table["Joint"]["Runs"].note == "seeds 0, 1"
    assert table["BMLR"]["Multimodal (%)"].text == "80.0"
    assert {name: row["Multimodal (%)"].mark for name, row in table.items()} == {
        "BMLR": "best", "Joint": "second", "UniformBaseline": "",
    }  # fmt: skip
    # A ratio is best where it is nearest to 1, from either side.
    assert {name: row["Ratio audio/image"].mark for name, row in table.items()} == {
        "BMLR": "best", "UniformBaseline": "second", "Joint": "",
    }  # fmt: skip
    assert table["Joint"]["Minutes"].text == "1.5"
    assert table["Joint"]["Data passes"].text == "3"


def test_equal_means_share_a_rank(tmp_path):
    for name, fused in (("Joint", 0.7), ("BMLR", 0.7004), ("OPM", 0.6)):
        make_run(tmp_path / name, name, fused=fused)
    marks = {name: row["Multimodal (%)"].mark for name, row in table_of(tmp_path).items()}
    assert marks == {"Joint": "best", "BMLR": "best", "OPM": ""}


def test_undefined_numbers_are_named_and_not_averaged_away(tmp_path):
    make_run(tmp_path / "a", seed=0, image=0.0)
    make_run(tmp_path / "b", seed=1, audio=0.5, image=0.5)
    make_run(tmp_path / "c", "BMLR", audio=0.5, image=0.0)
    table = table_of(tmp_path)
    cell = table["Joint"]["Ratio audio/image"]
    assert (cell.text, cell.note) == ("1.00*", "over the 1 of 2 runs where it is defined")
    assert (table["BMLR"]["Ratio audio/image"].text, table["BMLR"]["Ratio audio/image"].value) == ("–", None)
    unimodal = {"audio": math.nan, "image": 0.5}
    score = {"accuracy": 0.5, "unimodal_accuracy": unimodal, "ratio": {"audio/image": math.nan}}
    make_run(tmp_path / "d", "OPM", result={"test": score})
    page = Page(write_report([tmp_path], tmp_path / "r.html").path)
    assert "nan" not in page.text.casefold()
    json.loads(page.scripts[0], parse_constant=pytest.fail)


def test_a_method_with_two_settings_is_two_methods(tmp_path):
    make_run(tmp_path / "a", "BMLR", method_args={"alpha": 1.0, "beta": 0.1})
    make_run(tmp_path / "b", "BMLR", method_args={"alpha": 1.0, "beta": 0.5})
    make_run(tmp_path / "c", "Joint", epochs=4)
    table = table_of(tmp_path)
    assert list(table) == ["Joint", "BMLR:beta=0.1", "BMLR:beta=0.5"]
    runs = find_runs([tmp_path])
    (section,), _ = make_sections(runs)
    assert [group.parameters for group in section.groups] == ["", "", ""]  # the names hold them
    assert "The methods differ in trainer.epochs: 4 (Joint); 3 (BMLR:beta=0.1, BMLR:beta=0.5)." in section.notes
    assert "epochs" not in section.facts["Shared settings"]
    assert "batch size 64" in section.facts["Shared settings"]


def test_parameters_that_are_not_the_defaults_stand_under_the_name(tmp_path):
    make_run(tmp_path / "a", "BMLR", method_args={"alpha": 1.0, "beta": 0.125})
    ((group,),) = [section.groups for section in make_sections(find_runs([tmp_path]))[0]]
    assert (group.label, group.parameters) == ("BMLR", "beta=0.125")


def test_methods_that_are_not_registered_come_last_under_their_own_name(tmp_path):
    make_run(tmp_path / "a", class_path="mine.Odd", method_args={"k": 3})
    make_run(tmp_path / "b", "DGL")
    assert list(table_of(tmp_path)) == ["DGL", "mine.Odd"]


def test_paper_protocol_shows_last_and_best_epoch(tmp_path):
    score = {"accuracy": 0.8, "unimodal_accuracy": {}, "ratio": {}}
    extra = {"test_last_epoch": score, "test_best_epoch": {**score, "accuracy": 0.9, "epoch": 2}}
    make_run(tmp_path / "a", protocol="paper", result=extra)
    row = table_of(tmp_path)["Joint"]
    assert (row["Last epoch (%)"].text, row["Best on test (%)"].text) == ("80.0", "90.0")


def test_notes_say_what_makes_numbers_hard_to_compare(tmp_path):
    make_run(tmp_path / "a", "Joint", 0)
    make_run(tmp_path / "b", "Joint", 1, result={"versions": {"bmlr": "0.1.0", "torch": "9"}})
    make_run(tmp_path / "c", "BMLR", 0)
    runs = find_runs([tmp_path])
    (section,), _ = make_sections(runs)
    assert any("seeds 0, 1 (Joint); seed 0 (BMLR)" in note for note in section.notes)
    assert any("different versions" in note for note in section.notes)
    assert section.facts["Versions"] == "bmlr 0.1.0, torch 2.0 or 9"


def predictions(folder, hits):
    """Write a run's predictions, correct where ``hits`` is true."""
    hits = np.asarray(hits)
    table = PredictionTable([], len(hits))
    table.values[1] = torch.from_numpy(~hits).long()
    table.save(folder / PREDICTIONS)


def test_differences_have_intervals_over_seeds_and_samples(tmp_path):
    rng = np.random.default_rng(0)
    right = {}
    for method, rate in (("Joint", 0.6), ("BMLR", 0.8)):
        for seed in (0, 1, 2):
            right[method, seed] = rng.random(400) < rate
            folder = make_run(tmp_path / f"{method}{seed}", method, seed, fused=float(right[method, seed].mean()))
            predictions(folder, right[method, seed])
    table = table_of(tmp_path, baseline="Joint")
    cell = table["BMLR"]["Difference to Joint (95 %)"]
    gains = [right["BMLR", seed].mean() - right["Joint", seed].mean() for seed in (0, 1, 2)]
    low, high = bootstrap_difference(*(np.stack([right[m, s] for s in (0, 1, 2)]) for m in ("BMLR", "Joint")))
    assert cell.text == f"{100 * np.mean(gains):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert cell.value == pytest.approx(100 * np.mean(gains))
    assert cell.note == "resampled over seeds and samples; seeds 0, 1, 2"
    assert table["Joint"]["Difference to Joint (95 %)"].text == "0"
    page = Page(write_report([tmp_path], tmp_path / "page.html").path)  # joint training is the baseline by itself
    assert cell.text in page.text
    to_bmlr = Page(write_report([tmp_path], tmp_path / "page.html", baseline="BMLR").path)
    assert "Difference to BMLR (95 %)" in to_bmlr.text
    with pytest.raises(ValueError, match=r"`baseline` should be one of Joint, BMLR. Found 'BMRL'. Did you mean"):
        write_report([tmp_path], tmp_path / "page.html", baseline="BMRL")


def test_impossible_differences_have_a_reason(tmp_path):
    make_run(tmp_path / "a", "Joint", 0, fused=0.5)
    make_run(tmp_path / "b", "BMLR", 0, fused=0.75)
    make_run(tmp_path / "c", "DGL", 1, fused=0.75)
    head = "Difference to Joint (95 %)"
    table = table_of(tmp_path, baseline="Joint")
    assert (table["BMLR"][head].text, table["BMLR"][head].note) == ("+25.0", "resampled over nothing; seed 0")
    assert (table["DGL"][head].text, table["DGL"][head].note) == ("–", "no seed in common")
    for name in "ab":
        (tmp_path / name / PREDICTIONS).write_bytes(b"cut")
    assert "predictions.safetensors" in table_of(tmp_path, baseline="Joint")["BMLR"][head].note
    assert head not in next(iter(table_of(tmp_path).values()))
