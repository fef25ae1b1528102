"""Two processes with half of every batch each compute what one process computes on the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from subjects import NOT_MEAN_OVER_PROCESSES, same

from forks import run_in_two_processes


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory):
    """Gradients of all cases, as each of the two processes has them."""
    folder = tmp_path_factory.mktemp("distributed")
    run_in_two_processes(two_processes.run, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def agreement(in_two_processes, case):
    """For every step of a case, whether the two processes have the gradients of the joined batch."""
    first, second = (results["-".join(map(str, case))] for results in in_two_processes)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    expected = two_processes.all_gradients(case, None)
    assert len(expected) == len(first) >= two_processes.STEPS
    return [same(one, other, rtol=1e-7, atol=1e-9) for one, other in zip(first, expected, strict=True)]


@pytest.mark.parametrize("case", two_processes.CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_halves_in_two_processes_make_the_gradients_of_the_batch(in_two_processes, case):
    assert all(agreement(in_two_processes, case)) or case[0] in NOT_MEAN_OVER_PROCESSES


@pytest.mark.parametrize("subject", NOT_MEAN_OVER_PROCESSES)
def test_what_is_said_to_be_no_mean_over_processes_is_none(in_two_processes, subject):
    cases = [case for case in two_processes.CASES if case[0] == subject]
    assert not all(agree for case in cases for agree in agreement(in_two_processes, case))


@pytest.mark.parametrize("case", [("TCMax", "concat", 2), ("TCMax", "multilabel", 2)])
def test_tuples_of_a_sum_are_those_of_both_processes(in_two_processes, case):
    assert all(agreement(in_two_processes, case))


def run_script(folder, method, *arguments, timeout=240):
    script = Path(__file__).with_name("distributed_run.py")
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LOCAL_RANK"))}
    environment = {**hidden, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.run(  # noqa: S603
        [sys.executable, str(script), str(folder), method, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("BMLR",), marks=pytest.mark.slow),  # as in tests/reliability/test_failing_rank.py
        ("LFM", "--auto"),  # leaves parameters without a gradient
    ],
    ids=str,
)
def test_a_whole_run_in_two_processes(tmp_path, arguments):
    done = run_script(tmp_path / "run", *arguments)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["epochs"] == 2
    assert content["test"]["samples"] == 40
    assert content["validation"]["samples"] == 40
    assert content["data_passes"] == 2.0
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics["samples"].tolist() == [40, 40]
    assert all(bool(torch.isfinite(x).all()) for x in load_file(tmp_path / "run" / "last.safetensors").values())
