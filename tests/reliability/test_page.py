"""The commands of docs/reliability.md name tests, scripts and targets that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").replace("\\\n", " ")


def test_files_exist():
    named = set(re.findall(r"\b(?:tests|scripts)/[\w/]+\.py", PAGE))
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_targets_exist():
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, flags=re.MULTILINE))
    assert named >= {"soak", "coverage", "mutation"}
    assert not [name for name in named if not re.search(rf"^{name}:", made, flags=re.MULTILINE)]


def test_choices_of_tests_choose_some():
    chosen = re.findall(r"(tests/[\w/]+\.py) -k (\w+)", PAGE)
    assert len(chosen) >= 4
    for name, word in chosen:
        assert word in (ROOT / name).read_text(encoding="utf-8"), (name, word)
