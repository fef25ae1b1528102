import json

import pandas as pd
import pytest

from bmlr.benchmark.engines import LocalEngine
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.cli import main
from inline import CPU, SMALL, InlineEngine, quiet
from toy import Toy

OPTIONS = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.epochs", "1", "--trainer.progress",
           "false", "--model.width", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    """Runs in this process."""
    monkeypatch.setattr(LocalEngine, "execute", lambda _, tasks: InlineEngine().execute(tasks))


def error_of(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("bmlr: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_compare_prints_the_table_and_writes_tables_and_figures(tmp_path, capsys):
    arguments = ["compare", "--data", "toy.Toy", "--data.samples", "30", "--methods", "Joint", "BMLR:alpha=1,beta=0.2",
                 "--seeds", "0", "1", "--runs", str(tmp_path / "runs"), "--baseline", "Joint", "--out",
                 str(tmp_path / "out"), *OPTIONS]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "| BMLR:alpha=1,beta=0.2 |" in printed.out
    assert "Majority rate" in printed.out
    assert "[4/4] BMLR:alpha=1,beta=0.2 seed 1: finished in " in printed.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "table.tex", "table.csv", "runs.csv", "accuracy.png", "accuracy.pdf", "ratio.png",
                     "ratio.pdf", "methods.png", "methods.pdf"}  # fmt: skip
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert runs[["method", "seed", "state"]].to_numpy().tolist() == [
        ["Joint", 0, "finished"], ["Joint", 1, "finished"],
        ["BMLR:alpha=1,beta=0.2", 0, "finished"], ["BMLR:alpha=1,beta=0.2", 1, "finished"],
    ]  # fmt: skip
    table = (tmp_path / "out" / "table.md").read_text()
    assert main(arguments) == 0
    assert f"4 runs in {tmp_path / 'runs'}: 4 finished before." in capsys.readouterr().err
    assert (tmp_path / "out" / "table.md").read_text() == table

    # The runs in the folder alone, without naming them: the same numbers.
    assert main(["compare", "--runs", str(tmp_path / "runs"), "--baseline", "joint"]) == 0
    from_store = capsys.readouterr().out
    cells = [line.split(" | ")[1:6] for line in table.splitlines() if line.startswith(("| J", "| B"))]
    assert [line.split(" | ")[1:6] for line in from_store.splitlines() if line.startswith(("| J", "| B"))] == cells


def test_failed_runs_are_told_after_the_table(tmp_path, capsys):
    run_grid(make_jobs(Toy(), ["Joint"], [0], trainer=CPU, model=SMALL), tmp_path, InlineEngine(), say=quiet)
    run_grid(make_jobs(Toy(), ["BMLR"], [0], trainer=CPU, model=SMALL), tmp_path, InlineEngine(), say=quiet)
    broken = next(tmp_path.glob("toy-BMLR-*"))
    (broken / "result.json").unlink()
    (broken / "failed.json").write_text(json.dumps({"error": "ValueError: broken"}))
    assert main(["compare", "--runs", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "| BMLR | failed |" in printed.out
    assert f"1 of 2 runs failed, see failed.json in {broken}" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--data", "toy.Toy"], "--data and --methods belong together"),
        (["compare", "--methods", "Joint"], "--data and --methods belong together"),
        (["compare", "--runs", "nowhere"], "There is no run nowhere: no such folder"),
        (["compare", "--data", "toy.Toy", "--methods", "BMRL"], "Did you mean 'BMLR'"),
        (["compare", "--data", "digts", "--methods", "BMLR"], "Did you mean 'digits'"),
        (
            ["compare", "--data", "toy.Toy", "--methods", "BMLR", "--baseline", "Joint"],
            "`baseline` should be one of BMLR",
        ),
        (
            ["compare", "--data", "toy.Toy", "--methods", "BMLR", "--address", "auto"],
            "--address is for --engine ray only",
        ),
        (["compare", "--data", "toy.Toy", "--methods", "BMLR", "--seeds", "many"], "many"),
        (["compare", "--data", "avmnist", "--data.root", "/nowhere", "--methods", "BMLR"], "/nowhere"),
        (["tune", "--data", "toy.Toy", "--methods", "BMLR"], "--methods and --space should name at least one each"),
        (["tune", "--data", "toy.Toy", "--methods", "BMLR", "--space", "beta=0:2"], "`beta` should lie in [0, 1]"),
        (["reproduce", "tabel1"], "Did you mean 'table1'"),
        (["reproduce"], "needs NAMES"),
        (["reproduce", "table6", "--scale", "paper"], "bmlr prepare mosi SOURCE prepared"),
    ],
)
def test_bad_input_fails_with_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMLR_DATA", raising=False)
    assert message in error_of(capsys, arguments)
    assert not list(tmp_path.glob("runs/*"))


def test_a_result_cut_in_half_and_runs_of_other_data_are_told(tmp_path, capsys):
    for data in (Toy(), Toy(samples=30)):
        run_grid(make_jobs(data, ["Joint"], [0], trainer=CPU, model=SMALL), tmp_path, InlineEngine(), say=quiet)
    assert "do not belong in one table: Their samples differs (30 and 40)" in error_of(
        capsys, ["compare", "--runs", str(tmp_path)]
    )
    assert main(["compare", "--runs", str(tmp_path), "--force"]) == 0
    assert "FORCED: Their samples differs" in capsys.readouterr().out
    path = next(tmp_path.glob("*/result.json"))
    path.write_text(path.read_text()[:100])
    assert f"{path} is not a JSON file" in error_of(capsys, ["compare", "--runs", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    assert "There is no run in" in error_of(capsys, ["compare", "--runs", str(tmp_path / "empty")])


def test_tune_writes_a_configuration_that_trains(tmp_path, capsys):
    out = tmp_path / "out"
    space = "alpha=0.5|1,beta=0.1"
    arguments = ["tune", "--data", "toy.Toy", "--methods", "BMLR", "--space", space, "--sampler", "grid",
                 "--runs", str(tmp_path / "runs"), "--out", str(out), *OPTIONS]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| BMLR |" in printed
    assert str(out / "best-BMLR.yaml") in printed
    assert main(["train", "--config", str(out / "best-BMLR.yaml"), "--runs", str(tmp_path / "runs")]) == 0
    assert "nothing was trained" in capsys.readouterr().out


def test_reproduce_prints_the_papers_numbers_beside_ours(tmp_path, capsys):
    arguments = ["reproduce", "table4", "--data", "toy.Toy", "--seeds", "0", "--runs", str(tmp_path / "runs"), "--out",
                 str(tmp_path / "out"), *OPTIONS]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "79.69 (+8.8)" in printed
    assert str(tmp_path / "out" / "table4.tex") in printed


def test_help_is_made_from_the_docstrings(capsys):
    for arguments, expected in (
        (["--help"], "reproduce"),
        (["compare", "--help"], "Runs at a time"),
        (["tune", "--help"], "Trials of every method"),
        (["reproduce", "--help"], "Folder of the prepared data"),
    ):
        assert main(arguments) == 0
        assert expected in " ".join(capsys.readouterr().out.split())
