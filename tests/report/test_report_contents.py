"""Conclusion, unfinished runs, classes and exports of the report, by its command."""

import csv
import json
import os
import urllib.parse
from pathlib import Path

import numpy as np
import torch

from bmlr.benchmark.statistics import bootstrap_difference
from bmlr.cli import main
from bmlr.runs import DirectoryLock, PredictionTable
from bmlr.runs.layout import FAILURE, PREDICTIONS
from fabric import make_run
from html_page import Page

CLASSES = ["$five$ and $six$", "<script>pwned=1</script>", "[music]", "\u202eabc", "日本", "caf\udce9"]


def report(*folders, **options):
    """Write a report by the command and read its page."""
    out = Path(folders[0]).parent / "page.html"
    texts = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["report", *map(str, folders), "--out", str(out), *texts]) == 0
    return Page(out)


def write_predictions(folder, fused, targets, **modalities):
    table = PredictionTable(list(modalities), len(targets))
    for row, values in enumerate((targets, fused, *modalities.values())):
        table.values[row] = torch.as_tensor(np.asarray(values))
    table.save(folder / PREDICTIONS)


def make_runs(folder, rates, seeds=(0, 1, 2), samples=400):
    """Make runs of methods with given rates of correct predictions.

    Returns:
        Correctness of every prediction by method, shape (seeds, samples).
    """
    rng = np.random.default_rng(0)
    right = {}
    for method, rate in rates.items():
        right[method] = np.stack([rng.random(samples) < rate for _ in seeds])
        for seed, row in zip(seeds, right[method], strict=True):
            image = 0.4 if method == "Joint" else 0.477
            run = make_run(folder / f"{method}{seed}", method, seed, fused=float(row.mean()), image=image)
            write_predictions(run, ~row, np.zeros(samples, dtype=int))
    return right


def lead(page):
    """Text of the page before the facts."""
    return page.text.partition("digits, clean protocol")[2].partition("Data digits")[0]


# ---- conclusion ---------------------------------------------------------------------------------------------------


def test_the_conclusion_is_on_top_with_its_interval(tmp_path):
    right = make_runs(tmp_path / "runs", {"Joint": 0.6, "BMLR": 0.57, "DGL": 0.8})
    text = lead(report(tmp_path / "runs"))
    joint = 100 * right["Joint"].mean(axis=1)
    assert f"Joint : {joint.mean():.1f} ± {joint.std(ddof=1):.1f} % over 3 seeds, audio 50.0 %, image 40.0 %." in text
    for method, verdict in (("BMLR", "includes"), ("DGL", "excludes")):
        accuracy = 100 * right[method].mean(axis=1)
        low, high = (100 * end for end in bootstrap_difference(right[method], right["Joint"]))
        gain = (accuracy - joint).mean()
        sentence = (
            f"{method} : {accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f} %, {gain:.1f} points above Joint "
            f"[{low:+.1f}, {high:+.1f}], the interval {verdict} zero; audio +0.0, image +7.7."
        )
        assert sentence in text
    assert text.index("DGL") < text.index("BMLR")  # the best first


def test_one_method_and_one_seed_say_what_they_cannot_tell(tmp_path):
    make_run(tmp_path / "one" / "a", "BMLR", fused=0.7)
    page = report(tmp_path / "one")
    text = lead(page)
    assert "BMLR : 70.0 % in one run, audio 50.0 %, image 60.0 %; 45.0 points above the majority rate." in text
    assert "There is no other method to compare it with." in text
    assert "With one run, this cannot tell how much results vary with the seed." in text
    assert "The test split has 20 samples: each is 5.0 % of it." in text
    assert "Runs of BMLR Based on 1 finished run." in page.text
    make_run(tmp_path / "one" / "b", "Joint", fused=0.75)
    text = lead(report(tmp_path / "one"))
    assert "BMLR : 70.0 %, 5.0 points below Joint, without an interval; audio +0.0, image +0.0." in text
    assert "this cannot tell how much results vary with the seed, nor whether a difference is one of seeds." in text
    make_run(tmp_path / "two" / "a", "BMLR", 0, fused=0.2)
    make_run(tmp_path / "two" / "b", "DGL", 1, fused=0.7)
    text = lead(report(tmp_path / "two"))
    assert "BMLR : 20.0 % in one run, audio 50.0 %, image 60.0 %; 5.0 points below the majority rate." in text
    assert "There is no run of Joint to compare with; --baseline names another method." in text
    text = lead(report(tmp_path / "two", baseline="DGL"))
    assert "BMLR : 20.0 %, not comparable with DGL: no seed in common." in text


def test_many_methods_are_counted(tmp_path):
    rates = {"BMLR": 0.5, "DGL": 0.9, "OPM": 0.8, "AGM": 0.1, "CML": 0.85, "LFM": 0.5}
    make_runs(tmp_path / "runs", {"Joint": 0.5, **rates}, seeds=(0, 1))
    text = lead(report(tmp_path / "runs"))
    assert "Of 6 methods, 3 are above (DGL +" in text
    assert "and 1 is below (AGM -" in text
    assert "Joint by an interval that excludes zero; of 2 it cannot be told." in text
    assert text.count("points above Joint [") == 3


# ---- runs without a result ----------------------------------------------------------------------------------------


def test_unfinished_runs_are_listed_with_the_epoch_they_reached(tmp_path, capsys):
    folder = tmp_path / "runs"
    for name in ("running", "stopped", "failed"):
        run = make_run(folder / name, "BMLR", fused=0.5)
        (run / "result.json").unlink()
        config = (run / "config.yaml").read_text().replace("epochs: 3", "epochs: 70")
        (run / "config.yaml").write_text(config)
    (folder / "failed" / FAILURE).write_text(json.dumps({"error": "OSError: disk full", "traceback": "Traceback"}))
    with DirectoryLock(folder / "running"):
        page = report(folder)  # though none is finished
    printed = capsys.readouterr()
    assert "no finished run (methods: 0, runs: 0, not finished: 3, left out: 0)" in printed.out
    assert f"running: {folder / 'running'}: 3 of 70 epochs are done." in printed.err
    assert "Runs without a result yet Based on 0 finished runs; 3 not finished ." in page.text
    assert f"BMLR, seed 0 running 3 of 70 52.0 % {folder / 'running'} : 3 of 70 epochs are done." in page.text
    assert "BMLR, seed 0 stopped 3 of 70 52.0 %" in page.text
    assert "after 3 of 70 epochs. To go on: bmlr train --config" in page.text
    assert f"BMLR, seed 0 failed 3 of 70 52.0 % {folder / 'failed'} : It failed: OSError: disk full" in page.text
    make_run(folder / "done")
    page = report(folder)
    assert "Based on 1 finished run; 3 not finished ." in page.text
    assert page.text.index("Joint : 70.0 %") < page.text.index("BMLR, seed 0 stopped")


# ---- classes ------------------------------------------------------------------------------------------------------


def test_classes_and_confusions_of_every_method(tmp_path):
    targets = [0, 0, 0, 0, 1, 1, 2, 2]
    folder = tmp_path / "runs"
    for seed, fused in enumerate(([0, 0, 0, 1, 1, 1, 2, 0], [0, 0, 1, 1, 1, 1, 2, 0])):
        run = make_run(folder / f"a{seed}", "Joint", seed, result={"classes": CLASSES[:3]})
        write_predictions(run, fused, targets, audio=targets, image=[-1, -1, -1, -1, 0, 1, 2, 2])
    make_run(folder / "b", "BMLR", result={"classes": CLASSES[:3]})
    page = report(folder)
    assert f"{CLASSES[0]} 4 62.5 ± 17.7 {CLASSES[1]} 2 100.0 ± 0.0 {CLASSES[2]} 2 50.0 ± 0.0" in page.text
    # A modality is scored over the samples that have it; none of the first class has an image.
    assert f"{CLASSES[0]} 62.5 ± 17.7 100.0 ± 0.0 – (no sample) {CLASSES[1]} 100.0 ± 0.0 100.0 ± 0.0 50.0" in page.text
    assert f"True class {' '.join(CLASSES[:3])} {CLASSES[0]} 62.5 37.5 0.0 {CLASSES[1]} 0.0 100.0 0.0" in page.text
    assert ("td", {"class": "number heat-3", "data-value": "37.5", "title": "3 predictions"}) in page.tags
    assert "Not known of BMLR : There are no predictions in" in page.text


def test_many_classes_list_their_confusions(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 40, 300)
    run = make_run(tmp_path / "runs" / "a")
    write_predictions(run, np.where(targets == 7, 9, targets), targets)
    page = report(tmp_path / "runs")
    count = int((targets == 7).sum())
    assert f"Predicted as Predictions Of the class (%) class 7 class 9 {count} 100.0" in page.text
    assert page.text.count("Joint, confusion matrix") == 0


# ---- names, folders and exports -----------------------------------------------------------------------------------


def test_names_of_any_kind_are_shown_and_their_folders_linked(tmp_path):
    folder = tmp_path / "runs"
    raw = os.fsencode(folder) + b"/caf\xe9 [v2] $1$ a:b <i>#?%"
    for run, method in ((Path(os.fsdecode(raw)), "BMLR"), (folder / "a", "Joint")):
        make_run(run, method, data="\u202eabc", result={"classes": CLASSES})
        write_predictions(run, range(6), range(6))
    page = report(folder)
    for name in (*CLASSES[:-1], "caf\\udce9", "caf\\udce9 [v2] $1$ a:b <i>#?%", "\u2068\u202eabc\u2069, clean"):
        assert name in page.text
    assert "Not known of" not in page.text
    plain, link = (a["href"] for tag, a in page.tags if tag == "a" and "runs" in a["href"])
    assert plain == "runs/a/"
    assert urllib.parse.unquote_to_bytes(link) == b"runs/" + raw.rpartition(b"/")[2] + b"/"
    assert not set(":<>#?[] ") & set(link)
    assert page.count("script") == 3


def test_tables_are_there_as_csv_and_latex(tmp_path):
    make_runs(tmp_path / "runs", {"Joint": 0.5, "BMLR": 0.9}, seeds=(0, 1))
    page = report(tmp_path / "runs")
    places = [attributes["data-export"] for tag, attributes in page.tags if "data-export" in attributes]
    exports = json.loads(page.scripts[1])
    assert sorted(exports) == sorted(places)
    assert len(set(places)) == len(places) == 7
    methods = exports["methods-0"]
    assert methods["name"] == "digits-clean-protocol-methods"
    head, joint, bmlr = csv.reader(methods["csv"].splitlines())
    assert head[:4] == ["Method", "Runs", "Multimodal (%)", "Multimodal (%) std"]
    assert [column for column in head if column.startswith("Difference")] == [
        f"Difference to Joint (95 %){suffix}" for suffix in ("", " low", " high")
    ]
    assert (joint[0], bmlr[0], bmlr[1]) == ("Joint", "BMLR", "2")
    assert float(bmlr[head.index("Difference to Joint (95 %) low")]) > 30
    assert methods["tex"].startswith("\\begin{tabular}")
    assert "\\textbf{" in methods["tex"]


def test_a_diagnosis_of_a_run_is_shown(tmp_path):
    run = make_run(tmp_path / "runs" / "a", "BMLR", 3)
    (run / "diagnosis").mkdir()
    content = {"verdict": {"paragraph": "The image is undertrained, <probably>."}}
    (run / "diagnosis" / "diagnosis.json").write_text(json.dumps(content))
    assert "BMLR , seed 3 : The image is undertrained, <probably>." in report(tmp_path / "runs").text
    (run / "diagnosis" / "diagnosis.json").write_text("{")
    assert "seed 3 :" not in report(tmp_path / "runs").text
