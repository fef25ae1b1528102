import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bmlr.benchmark import _plan as plan_module
from bmlr.benchmark import _progress as progress_module
from bmlr.benchmark.engines import LocalEngine
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.cli import main
from inline import CPU, SMALL, InlineEngine, quiet
from toy import Toy

OPTIONS = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.epochs", "1", "--trainer.progress",
           "false", "--model.width", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    """Runs in this process, an epoch of which takes an hour, they say."""
    monkeypatch.setattr(LocalEngine, "execute", lambda _, tasks: InlineEngine().execute(tasks))
    cost = {"epoch_seconds": 3600.0, "weights": 1e8}
    monkeypatch.setattr(plan_module, "_measure_steps", lambda jobs, *_: [cost] + [None] * (len(jobs) - 1))


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
        (["compare", "--runs", "nowhere"], "There are no runs to compare: no folder nowhere"),
        (["compare", "--data", "toy.Toy", "--methods", "BMRL"], "Did you mean 'BMLR'"),
        (["compare", "--data", "digts", "--methods", "BMLR"], "Did you mean 'digits'"),
        (
            ["compare", "--data", "toy.Toy", "--methods", "BMLR", "--baseline", "Joint"],
            "Option --baseline should be one of BMLR",
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


def compare(folder, *more, seeds=("0", "1")):
    return ["compare", "toy.Toy", "--methods", "joint", "ogm-ge:alpha=0.5", "--seeds", *seeds, "--runs",
            str(folder / "runs"), *OPTIONS, *more]  # fmt: skip


def test_a_dry_run_lists_the_runs_with_their_cost_and_starts_nothing(tmp_path, capsys):
    assert main(compare(tmp_path, "--dry-run")) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| [")]
    assert [row[0] for row in rows] == [
        "| [1/4] Joint seed 0", "| [2/4] OGMGE:alpha=0.5 seed 0", "| [3/4] Joint seed 1",
        "| [4/4] OGMGE:alpha=0.5 seed 1",
    ]  # fmt: skip
    assert [row[1:5] for row in rows] == [["new", "1", "60 min", "0.5 GB"]] * 4
    assert not list(tmp_path.iterdir())
    assert main(compare(tmp_path, seeds=("0",))) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[:2] == [
        f"2 runs in {tmp_path / 'runs'}.", "About 2.0 h, and 1.0 GB on disk, as a few steps on this machine tell."
    ]  # fmt: skip
    assert "| OGMGE:alpha=0.5 |" in captured.out  # what is typed is shown
    assert "The test split has 40 samples: each is 2.5 % of it." in captured.out
    assert main(compare(tmp_path, "--processes", "2", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert f"4 runs in {tmp_path / 'runs'}: 2 finished before. About 60 min, 2 at a time, and 1.0 GB" in printed
    assert printed.count("| finished | 1 | – | – |") == 2


def test_runs_show_their_epoch_validation_and_time_left(tmp_path, capsys, monkeypatch):
    def execute(_, tasks):
        for task in tasks:
            (task.directory / "log.txt").touch()
            yield None
            (task.directory / "metrics.csv").write_text("epoch,val_accuracy\n0,0.25\n1,0.612\n")
            yield None
            (task.directory / "metrics.csv").unlink()
            yield from InlineEngine().execute([task])

    monkeypatch.setattr(LocalEngine, "execute", execute)
    monkeypatch.setattr(progress_module, "_PAUSE", 0.0)
    assert main([*compare(tmp_path, "--trainer.epochs", "3"), "--seeds", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()[2:]
    assert lines[0] == "[1/2] Joint seed 1: epoch 1/3"
    assert lines[1] == "[1/2] Joint seed 1: epoch 2/3, val 61.2 %, 0 s left"
    assert lines[2].startswith("[1/2] Joint seed 1: finished in ")
    assert lines[3] == "[2/2] OGMGE:alpha=0.5 seed 1: epoch 1/3"


@pytest.mark.parametrize("command", ["compare", "tune", "reproduce"])
def test_ctrl_c_says_what_is_kept(tmp_path, capsys, monkeypatch, command):
    def execute(_, tasks):
        yield from InlineEngine().execute(tasks[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "execute", execute)
    runs = ["--runs", str(tmp_path / "runs")]
    search = ["--methods", "BMLR", "--space", "alpha=0.5|1", "--sampler", "grid", "--parallel", "2"]
    arguments = {
        "compare": compare(tmp_path),
        "tune": ["tune", "toy.Toy", *search, "--out", str(tmp_path / "out"), *runs, *OPTIONS],
        "reproduce": ["reproduce", "table4", "--data", "toy.Toy", *runs, "--seeds", "0", *OPTIONS],
    }
    assert main(arguments[command]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    kept = {"compare": "1 of 4 runs", "tune": "0 of 2 trials", "reproduce": "1 of 3 runs"}
    assert f"Stopped by Ctrl-C: {kept[command]}" in said
    assert "The same command goes on from there." in said


def test_tune_shows_trials_with_value_and_best_so_far(tmp_path, capsys):
    arguments = ["tune", "toy.Toy", "--methods", "BMLR", "--space", "alpha=0.5|1", "--sampler", "grid",
                 "--processes", "2", "--out", str(tmp_path / "out"), *OPTIONS]  # fmt: skip
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "| BMLR | alpha=0.5\\|1 | 2 | 2 | 1 |" in printed
    assert "About 2.0 h, and 1.0 GB on disk" in printed
    assert not list(tmp_path.iterdir())
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"2 trials for BMLR, in {tmp_path / 'out' / 'runs'}."
    assert "2 processes, but only 1 run at a time: --parallel 2 chooses" in lines[1]
    assert lines[3].startswith("[1/2] BMLR with alpha=0.5: finished in ")
    for number, line in ((1, lines[4]), (2, lines[6])):
        assert re.fullmatch(
            rf"BMLR, trial {number} of 2: validation [\d.]+ %, best so far [\d.]+ % by alpha=[\d.]+", line
        ), line


def test_reproduce_without_data_says_that_it_takes_the_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table4", "fig5", "--root", "prepared", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "these are runs on the embedded digits, not on the paper's data (crema-d, kinetics-sounds, ave)" in printed
    assert "--root is of no use for them" in printed
    assert "| [9/9] BMLR seed 2 | new | 10 |" in printed
    assert "| BMLR | alpha=0.5\\|1\\|2, beta=0\\|0.1\\|0.5\\|1 | 12 | 12 | 10 |" in printed
    assert not list(tmp_path.iterdir())


def test_reproduce_takes_prepared_data_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMLR_DATA", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "data")
    from media_fixtures import write_crema_d

    write_crema_d(tmp_path / "raw", actors=6, seconds=0.6)
    assert main(["prepare", "crema-d", "raw", "prepared", "--train-list", "raw/train.csv", "--test-list",
                 "raw/test.csv", "--workers", "0", "--size", "32"]) == 0  # fmt: skip
    capsys.readouterr()
    named = ["reproduce", "table4", "--seeds", "0", *OPTIONS]
    for arguments in (["--data", "crema-d:root=prepared"], ["--data", "crema-d", "--root", "prepared"]):
        assert main([*named, *arguments]) == 0
        printed = capsys.readouterr()
        assert "| UniformBaseline | " in printed.out
        assert "n crema-d the paper's numbers are of other settings: 70 epochs, batch 64" in printed.out
        assert "other data" not in printed.out
        assert "digits" not in printed.err
    assert "3 runs in runs: 3 finished before." in printed.err  # both are the same data
    assert main([*named, "--scale", "paper", "--data", "crema-d", "--root", "prepared"]) == 0
    printed = capsys.readouterr().out
    assert "| method | crema-d (%): paper | crema-d (%): ours | crema-d (%): difference |" in printed
    assert "paper protocol" in printed
