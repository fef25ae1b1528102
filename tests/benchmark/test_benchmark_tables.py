import dataclasses

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.benchmark import compare_runs, comparison_table
from bmlr.benchmark._tables import comparison_frame
from bmlr.tables import Cell, Table, format_mean, mark_best, write_table
from inline import failed, finished


def compared(tmp_path):
    records = [finished(tmp_path, "Joint", seed, [1, 0, 0, 0]) for seed in (0, 1)]
    records += [finished(tmp_path, "BMLR", seed, [1, 1, seed, 1]) for seed in (0, 1)]
    records += [finished(tmp_path, "DGL", seed, [1, 1, 0, 0]) for seed in (0, 1)]
    return compare_runs([*records, failed(tmp_path, "LFM", 0)], baseline="Joint", n_resamples=200)


def test_the_table_shows_means_marks_majority_and_failures(tmp_path):
    table = comparison_table(compared(tmp_path))
    cells = {row[0].text: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert cells["BMLR"]["multimodal (%)"] == Cell("87.5 ± 17.7", "best")
    assert cells["DGL"]["multimodal (%)"] == Cell("50.0 ± 0.0", "second")
    assert cells["Joint"]["multimodal (%)"] == Cell("25.0 ± 0.0")
    assert cells["Joint"]["difference to Joint (95 %)"].text == "0"
    assert cells["DGL"]["difference to Joint (95 %)"].text.startswith("+25.0 [")
    assert cells["LFM"]["multimodal (%)"].text == "failed"
    assert cells["LFM"]["runs"].text == "0 (1 failed)"
    markdown = table.markdown()
    assert "| **87.5 ± 17.7** |" in markdown
    assert "| <u>50.0 ± 0.0</u> |" in markdown
    assert "Majority rate 35.0 %." in markdown
    assert "toy, clean protocol" in markdown
    latex = table.latex()
    assert r"\textbf{87.5 $\pm$ 17.7}" in latex
    assert r"\underline{50.0 $\pm$ 0.0}" in latex
    assert "% Majority rate 35.0 %." in latex
    assert latex.count(r"\\") == len(table.rows) + 1


def test_the_paper_protocol_shows_last_and_best_epoch_on_test(tmp_path):
    score = {"accuracy": 0.25, "unimodal_accuracy": {}, "ratio": {}}
    record = finished(tmp_path, "Joint", 0, [1, 0], test_last_epoch=score, test_best_epoch={**score, "accuracy": 0.75})
    table = comparison_table(compare_runs([record]))
    row = dict(zip(table.heads, (cell.text for cell in table.rows[0]), strict=True))
    assert (row["last epoch (%)"], row["best on test (%)"]) == ("25.0", "75.0")
    assert any("optimistic" in note for note in table.notes)


def test_files_hold_the_numbers(tmp_path):
    comparison = compared(tmp_path / "runs")
    files = write_table(comparison_table(comparison), comparison_frame(comparison), tmp_path / "out", "table")
    assert [path.name for path in files] == ["table.md", "table.tex", "table.csv"]
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert table.loc["BMLR", "accuracy_mean"] == 0.875
    assert table.loc["BMLR", "difference"] == pytest.approx(0.625)
    assert table.loc["BMLR", "difference_low"] <= 0.625 <= table.loc["BMLR", "difference_high"]
    assert table["constant_score"].unique().tolist() == [0.35]
    assert table.loc["LFM", "failed"] == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_what_looks_the_same_is_marked_the_same(values):
    cells = mark_best([Cell(format_mean(value)) for value in values])
    shown = {cell.text: cell.mark for cell in cells}
    assert all(cell.mark == shown[cell.text] for cell in cells)
    best = [cell.text for cell in cells if cell.mark == "best"]
    second = [cell.text for cell in cells if cell.mark == "second"]
    assert bool(best) == (len(shown) > 1)
    assert not (len(best) > 1 and second)
    if best:
        assert float(best[0]) == max(map(float, shown))


def test_special_characters_survive_in_both_formats():
    table = Table(["a|b_c", "n"], [[Cell("100% & $x_1$"), Cell("–")]])
    assert "a\\|b_c" in table.markdown()
    assert r"100\% \& \$x\_1\$ & -- \\" in table.latex()
    assert r"a|b\_c & n" in table.latex()


def test_a_single_seed_says_so(tmp_path):
    table = comparison_table(compare_runs([finished(tmp_path, "Joint", 0, [1, 0])]))
    assert "One seed." in table.notes
    assert table.rows[0][1] == Cell("50.0")
    assert dataclasses.replace(table, title="").markdown().startswith("| method |")
