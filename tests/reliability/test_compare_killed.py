"""A comparison that is killed at random moments, alone or with the run it is making, ends as one that was not."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from commands import TRAINING, Forked, chance, finish, fork_server

METHODS = ["Joint", "BMLR:alpha=1,beta=0.2"]


@pytest.fixture(scope="module")
def server():
    modules = ["bmlr.commands.compare", "bmlr.benchmark", "matplotlib.pyplot", "sklearn.metrics", "scipy.stats"]
    with fork_server(*TRAINING, *modules) as process:
        yield process


def arguments(folder):
    return [
        "compare", "--data", "toy.Toy", "--methods", *METHODS, "--seeds", "0", "--baseline", "Joint",
        "--runs", str(folder / "runs"), "--out", str(folder / "out"), "--model.width", "2",
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.epochs", "40",
        "--trainer.checkpoint_every", "10",
    ]  # fmt: skip


def outcome(folder):
    """The final table and what is known of the runs, without times and places, and the names of all files.

    A table that was being written at the very moment may be left beside the next one.
    """
    table = pd.read_csv(folder / "out" / "table.csv", dtype=str, keep_default_na=False)
    runs = pd.read_csv(folder / "out" / "runs.csv", dtype=str, keep_default_na=False)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "events.out" not in path.name)
    return (
        table.drop(columns="minutes").to_dict("list"),
        runs.drop(columns=["seconds", "directory"]).to_dict("list"),
        [name for name in names if not name.endswith("failed.json") and not re.fullmatch(r"out/\..*\.tmp", name)],
    )


def finished(folder):
    """When the results there are were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}


def descendants(process):
    """Processes that a process and its children have started."""
    with contextlib.suppress(OSError):
        children = [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        return [*children, *(number for child in children for number in descendants(child))]
    return []


def kill(process, how, with_run):
    """Signal a comparison, and the run it is making at the same moment as a loss of power would."""
    runs = descendants(process) if with_run else []
    os.killpg(process, how)
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run, how)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_killed_thirty_times_a_comparison_ends_the_same(tmp_path, server, how):
    command = Forked(server, tmp_path / "errors")
    longest = finish(command, arguments(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    rng = chance(how)
    kills, alone, kept, folders = 0, 0, 0, [tmp_path / "cut0"]
    while kills < 30:
        before = finished(folders[-1])
        process = command.start(arguments(folders[-1]))
        if command.ended(rng.uniform(0, longest)) is None:
            with_run = rng.random() < 0.5
            kill(process, how, with_run)
            assert command.ended(120) in {0, -how}, command.errors.read_text()
        after = finished(folders[-1])
        assert before.items() <= after.items()  # what was finished is not made again
        if command.ended(0) != 0:
            assert command.ended(0) == -how, command.errors.read_text()
            kills += 1
            alone += not with_run
            kept += bool(after)
            continue
        longest *= 0.8  # the machine is less busy than it was
        folders.append(tmp_path / f"cut{len(folders)}")
    finish(command, arguments(folders[-1]))
    for folder in folders:
        assert outcome(folder) == expected
        assert not list(folder.glob("runs/**/*.tmp"))
    print(f"{how!r}: 30 times, {alone} of them without the run, {kept} with a finished run, {len(folders)} comparisons")
