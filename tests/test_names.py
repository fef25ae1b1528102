"""Names of the user's reach no interpreter: markup, options, printf, encodings."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bmlr.cli import main

LABELS = ("[music]", "[/noise]", ":cat: 100%s", "-dash {0}", "@file #1", r"$\frac{ $")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.epochs", "1", "--model.width", "2"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Table of two vectors per sample, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(72):
        label = number % len(LABELS)
        for name in ("-a", "b"):
            np.save(f"{name}[{number}].npy", rng.normal(label, 1, 3).astype(np.float32))
        rows.append([f"[red]{number}", LABELS[label], f"-a[{number}].npy", f"b[{number}].npy"])
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "label", "a", "b"], *rows])
    return Path("t.csv")


def test_names_are_printed_as_they_are(table, capsys):
    run = "runs/[/old] :cat:"

    def printed(*arguments):
        assert main([str(word) for word in arguments]) == 0
        return capsys.readouterr().out

    prepared = printed("prepare", "manifest", table, "out", "--workers", "0")
    inspected = printed("inspect", "manifest", "--data.root=out", "--samples", "5", "--sheet", "[b].png")
    for label in LABELS:
        assert f"│ {label} " in prepared
        assert f"│ {label} " in inspected
    assert Path("[b].png").exists()
    train = ["train", "manifest", "--data.root=out", "--method", "Joint", *CPU]
    assert run in printed(*train, "--run", run)
    assert run in printed("evaluate", run)
    assert any(label in printed("predict", run, "a=-a[0].npy", "b=b[0].npy") for label in LABELS)
    assert "probability" in printed("predict", run, "--json", "no", "--", "a=-a[0].npy", "b=b[0].npy")
    assert run in printed("diagnose", run)
    assert "[x]" in printed("compare", "--runs", "runs", "--out", "[x]")
    assert "%s[y].html" in printed("report", "runs", "--out", "%s[y].html", "--title", "-[red]title %s")
    assert "-[red]title %s" in Path("%s[y].html").read_text(encoding="utf-8")


def test_names_in_another_encoding(table, capsys):
    """Data may lie in a folder whose name is no UTF-8; a run may not, and nothing is written there."""
    folder, bad = os.fsdecode(b"o\xff"), os.fsdecode(b"r\xff[red]")
    assert main(["prepare", "manifest", str(table), folder, "--workers", "0"]) == 0
    assert main(["train", "manifest", "--data.root", folder, "--method", "Joint", *CPU, "--run", "r"]) == 0
    assert main(["evaluate", "r"]) == 0
    capsys.readouterr()
    assert main(["train", "manifest", "--data.root", folder, "--method", "Joint", *CPU, "--run", bad]) == 2
    assert "has a name that is not UTF-8. Choose another." in capsys.readouterr().err
    assert not Path(bad).exists()
    # A terminal of ASCII alone, no home folder, and the same names.
    program = "import sys; from bmlr.cli import main; main(sys.argv[1:3]); main(sys.argv[3:])"
    words = r"evaluate $'r\xff[red]' inspect manifest --data.root $'o\xff' --samples 5"
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {words} | cat"
    variables = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, check=False)  # noqa: S603, S607
    assert b"There is no run in r\\udcff[red]" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"[music]" in done.stdout
    assert done.stdout.isascii()


def test_files_may_begin_with_a_dash(table, capsys):
    for arguments in (["evaluate", "-x"], ["predict", "-x", "-0abc.mp4"], ["report", "-x"]):
        assert main(arguments) == 2
        assert "There is no run" in capsys.readouterr().err
