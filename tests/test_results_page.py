"""Cells of tables in the sentences of a page of results."""

import sys
from pathlib import Path

import pytest

TABLE = """**Methods**

| method | digits (%) | gain |
| --- | ---: | ---: |
| Joint | 86.6 ± 5.7 | – |
| BMLR | **91.5 ± 0.4** | <u>+4.9 [+0.1, +11.3]</u> |
| BMLR:beta=0 | 90.0 ± 0.4 | +3.4 |

A note | with a bar.
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    from results_page import Results

    (tmp_path / "table.md").write_text(TABLE)
    yield Results(tmp_path)
    sys.modules.pop("results_page", None)


def test_a_cell_is_found_by_row_and_head_without_marks(results):
    assert results.cell("table", "BMLR", "digits (%)") == "91.5 ± 0.4"
    assert results.cell("table", "BMLR", "gain") == "+4.9 [+0.1, +11.3]"


@pytest.mark.parametrize(("row", "head"), [("DGL", "gain"), ("BMLR", "loss")])
def test_a_cell_that_is_not_there_stops_the_page(results, row, head):
    with pytest.raises(SystemExit, match=f"Table table should have the column '{head}' and one row '{row}'"):
        results.cell("table", row, head)
