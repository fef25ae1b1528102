"""Encoder passes of a step of every method, against the table of docs/performance.md."""

from pathlib import Path

import pytest
from passes import encoder_passes
from subjects import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def page_rows():
    """Forwards, backwards and their floors by method and kind of step, from the page; others make one of each."""
    section = PAGE.read_text(encoding="utf-8").partition("### Encoder passes\n")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {(name, tag.strip("`")): tuple(map(float, numbers)) for name, tag, *numbers, _ in rows[2:]}


def test_the_page_names_methods_and_gives_a_reason_for_what_is_above_the_floor():
    rows = page_rows()
    assert {name for name, _ in rows} <= set(METHODS)
    for forwards, backwards, least_forwards, least_backwards in rows.values():
        assert forwards >= least_forwards
        assert backwards >= least_backwards


@pytest.mark.parametrize("name", METHODS)
def test_a_step_makes_the_passes_of_the_page(name):
    listed = {tag: row[:2] for (method, tag), row in page_rows().items() if method == name}
    for tag, found in encoder_passes(name).items():
        assert found == listed.pop(tag, (1.0, 1.0)), tag
    assert not listed
