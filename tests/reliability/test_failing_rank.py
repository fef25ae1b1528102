"""Two processes that train together: what becomes of one when the other ends, and of data that do not divide."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from interruptions import assert_same_run

from bmlr.runs.storage import read_checkpoint
from bmlr.training import evaluate_run
from toy import Toy

#: Seconds within which all processes have to be gone; starting them takes most of it.
BOUND = 120


def run(folder, *, samples=41, kind="none", rank=0, at=0):
    """The script's exit status and error stream."""
    script = Path(__file__).with_name("rank_run.py")
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LOCAL_RANK"))}
    environment = {**hidden, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    errors = folder.with_suffix(".errors")
    with errors.open("wb") as stream:
        done = subprocess.run(  # noqa: S603
            [sys.executable, str(script), str(folder), str(samples), kind, str(rank), str(at)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            timeout=BOUND,
            check=False,
        )
        wait_for_end(Path(f"{folder}.1.pid"))
    return done.returncode, errors.read_text()


def wait_for_end(path):
    """Wait until the second process, a child of the first, is gone too."""
    deadline = time.monotonic() + BOUND
    stat = Path(f"/proc/{path.read_text()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "The other process did not end."
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "whole"
    code, errors = run(folder)
    assert code == 0, errors
    return folder


def test_parts_that_do_not_divide_are_scored_as_by_one_process(whole):
    """41 samples in batches of 8 over two processes: the last batches are uneven, and one is empty."""
    content = json.loads((whole / "result.json").read_text())
    assert content["data"] == Toy.name
    for split, weights, entry in (("test", "best", "test"), ("val", "best", "validation")):
        alone = evaluate_run(whole, split=split, weights=weights).as_dict()
        assert alone.keys() == content[entry].keys()
        for name, value in alone.items():  # sums over two processes are rounded elsewhere
            assert content[entry][name] == (value if value is None else pytest.approx(value, abs=1e-6)), name
        assert content[entry]["samples"] == 41
    table = pd.read_csv(whole / "metrics.csv")
    assert table["samples"].tolist() == [42, 42]  # filled up from the beginning, so that all take part in every step


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("killed", 1),
        pytest.param("killed", 0, marks=pytest.mark.slow),
        pytest.param("error", 1, marks=pytest.mark.slow),
        pytest.param("error", 0, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_ends_the_other_with_a_message(tmp_path, whole, kind, rank):
    code, errors = run(tmp_path / "cut", kind=kind, rank=rank, at=4)
    assert code != 0
    told = f"bmlr: process 1 of the run in {tmp_path / 'cut'} ended by"
    assert told in errors or "was stopped because one of its processes ended" in errors or (kind, rank) == ("error", 0)
    assert (kind == "error") == ("of this process alone" in errors)
    if kind == "killed" and rank == 1:
        assert f"{told} signal 9; so do the others." in errors
    assert run(tmp_path / "cut")[0] == 0
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(tmp_path, whole, rank):
    code, errors = run(tmp_path / "cut", kind="term", rank=rank, at=2)
    assert code == 2, errors
    assert "was stopped by SIGTERM with a checkpoint after step 2" in errors
    state = read_checkpoint(tmp_path / "cut" / "last.ckpt")["bmlr"]
    assert state["position"] == 2
    assert len(state["processes"]) == 2
    assert run(tmp_path / "cut")[0] == 0
    assert_same_run(whole, tmp_path / "cut")
