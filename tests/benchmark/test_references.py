"""The best single modality and the ensemble, which every method is compared with where there are runs of them."""

import numpy as np

from bmlr.benchmark import compare_runs, comparison_table
from bmlr.benchmark._tables import comparison_frame
from bmlr.benchmark.references import references
from bmlr.benchmark.statistics import difference_of
from bmlr.report._differences import differences_to
from bmlr.report._sections import make_sections
from bmlr.report._tables import method_table
from bmlr.runs import group_runs
from inline import finished


def hits(rate, seed):
    return np.random.default_rng(seed).random(60) < rate


def records(folder):
    def run(label, rate, validation, seed, **changes):
        right = hits(rate, 7 * seed + len(label))
        record = finished(folder, label, seed, right, validation={"accuracy": validation}, **changes)
        if ":" in label:
            record.config["method"]["init_args"] = {"modality": label.partition("=")[2]}
        return record

    runs = []
    for seed in (0, 1):
        runs += [run("Joint", 0.6, 0.6, seed), run("Unimodal:modality=audio", 0.5, 0.7, seed)]
        # Better on test, but not on validation: it must not be chosen.
        runs += [run("Unimodal:modality=image", 0.9, 0.4, seed)]
        runs += [run("Ensemble", 0.8, 0.8, seed, epochs=1, data_passes=0.0)]
    return runs


def test_the_best_single_modality_is_chosen_on_validation_and_differences_are_paired(tmp_path):
    runs = records(tmp_path)
    groups = group_runs(runs)
    found = references(groups)
    assert found == {"best single modality": "Unimodal:modality=audio", "ensemble": "Ensemble"}
    comparison = compare_runs(runs)  # the ensemble trains nothing, which is no other budget
    table = comparison_table(comparison)
    for name, label in found.items():
        column = [row[table.heads.index(f"over the {name} (95 %)")].text for row in table.rows]
        for text, group in zip(column, groups, strict=True):
            expected = difference_of(groups[group], groups[label])
            assert text == ("0" if group == label else expected.text())
    assert "The best single modality is Unimodal:modality=audio, chosen on validation." in table.notes
    frame = comparison_frame(comparison).set_index("method")
    joint = difference_of(groups["Joint"], groups["Ensemble"])
    assert frame.loc["Joint", "over_ensemble"] == joint.mean
    assert (frame["best_single_modality"] == "Unimodal:modality=audio").all()
    only = compare_runs([run for run in runs if run.label in {"Joint", "Ensemble"}])
    assert list(only.references) == ["ensemble"]


def test_the_report_has_the_same_columns(tmp_path):
    sections, excluded = make_sections(records(tmp_path))
    assert not excluded
    table = method_table(sections[0], None, differences_to(sections[0], None))
    assert "Over the ensemble (95 %)" in table.heads
    index = table.heads.index("Over the best single modality (95 %)")
    labels = [row[0].text for row in table.rows]
    (single,) = [label for label in labels if table.rows[labels.index(label)][index].text == "0"]
    assert single.startswith("Unimodal")
