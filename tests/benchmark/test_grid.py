import contextlib
import dataclasses
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from bmlr.benchmark import _worker as worker_module
from bmlr.benchmark import engines as engines_module
from bmlr.benchmark import grid as grid_module
from bmlr.benchmark import run_frame
from bmlr.benchmark._jobs import BUSY, DONE, FAILED, STOPPED
from bmlr.benchmark._server import Task
from bmlr.benchmark.engines import LocalEngine, RayEngine
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.benchmark.plans import make_plan
from bmlr.commands._engine import EngineOptions
from bmlr.config import OptimizerOptions
from bmlr.runs import DirectoryLock, RunInterruptedError, read_run
from inline import CPU, SMALL, InlineEngine, process_exists, quiet
from toy import Toy

TESTS = Path(__file__).parents[1]
METHODS = ["Joint", "BMLR:alpha=1,beta=0.2"]


def jobs_of(methods=METHODS, seeds=(0,), data=None, **options):
    return make_jobs(data or Toy(), methods, seeds, **{"trainer": CPU, "model": SMALL, **options})


def numbers(records):
    """What has to be the same however often the grid was stopped: all but times and places."""
    return run_frame(records).drop(columns=["seconds", "directory"]).to_dict("list")


def test_jobs_are_methods_by_seeds_with_one_budget():
    jobs = jobs_of(["Joint", "ReconBoost:t1=1,t2=1@7"], [3, 4])
    assert [(job.label, job.config.seed) for job in jobs] == [
        ("Joint", 3), ("ReconBoost:t1=1,t2=1@7", 3), ("Joint", 4), ("ReconBoost:t1=1,t2=1@7", 4),
    ]  # fmt: skip
    assert [job.config.trainer.epochs for job in jobs] == [1, 7, 1, 7]
    assert {job.config.optimizer.lr for job in jobs} == {Toy.defaults.lr}
    assert len({job.config.name for job in jobs}) == 4
    with pytest.raises(ValueError, match="`methods` should name each once. Found Joint twice"):
        jobs_of(["Joint", "Joint"])
    with pytest.raises(ValueError, match="`seeds` should name at least one"):
        jobs_of(seeds=[])


def test_finished_runs_are_kept_and_one_configuration_is_one_run(tmp_path):
    engine, lines = InlineEngine(), []
    first = run_grid(jobs_of(), tmp_path, engine, say=lines.append)
    assert [record.state for record in first] == ["finished"] * 2
    assert len(engine.made) == 2
    assert lines[0] == f"2 runs in {tmp_path}."
    assert lines[2].startswith("[2/2] BMLR:alpha=1,beta=0.2 seed 0: finished in ")
    assert lines[2].endswith(" %")
    # The same again with another spelling, other places of work, and one more.
    again = run_grid(
        jobs_of(["Joint", "BMLR:alpha=1.0,beta=0.2", "OnlyTPO"], trainer=dataclasses.replace(CPU, num_workers=0)),
        tmp_path, engine, say=lines.append,
    )  # fmt: skip
    assert f"3 runs in {tmp_path}: 2 finished before." in lines
    assert len(engine.made) == 3
    assert [record.directory for record in again[:2]] == [record.directory for record in first]


def test_a_failing_run_is_recorded_and_does_not_stop_the_others(tmp_path):
    engine, lines = InlineEngine(), []
    jobs = [*jobs_of(["Joint"], data=Toy(poison=3)), *jobs_of(["BMLR"])]
    bad, good = run_grid(jobs, tmp_path, engine, say=lines.append)
    assert (bad.state, good.state) == ("failed", "finished")
    content = json.loads((bad.directory / "failed.json").read_text())
    assert content["error"].startswith("NonFiniteLossError: The loss is not finite")
    assert "Traceback (most recent call last)" in content["traceback"]
    assert content["config"]["data"]["init_args"]["poison"] == 3
    assert any("failed: NonFiniteLossError" in line and "failed.json" in line for line in lines)
    run_grid(jobs, tmp_path, engine, say=quiet)
    assert engine.made.count(bad.directory.name) == 2  # tried again, and failed again
    assert engine.made.count(good.directory.name) == 1


def test_what_failed_before_is_forgotten_when_it_succeeds(tmp_path):
    job = jobs_of(["Joint"])[0]
    directory = job.directory(tmp_path)
    directory.mkdir()
    (directory / "failed.json").write_text('{"error": "the disk was full"}')
    record = run_grid([job], tmp_path, InlineEngine(), say=quiet)[0]
    assert record.state == "finished"
    assert not (directory / "failed.json").exists()


def test_data_are_prepared_before_anything_runs(tmp_path):
    data = Toy()

    def missing():
        raise FileNotFoundError("no such folder")

    data.prepare = missing
    engine = InlineEngine()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run_grid(jobs_of(data=data), tmp_path, engine, say=quiet)
    assert not list(tmp_path.iterdir())
    run_grid(jobs_of(), tmp_path, engine, say=quiet)
    run_grid(jobs_of(data=data), tmp_path, engine, say=quiet)  # nothing to run: the data are not asked for


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        run_grid(jobs_of(), tmp_path / "file", InlineEngine(), say=quiet)


def test_runs_of_another_process_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_module, "_POLL_SECONDS", 0.05)
    job = jobs_of(["Joint"])[0]
    lock, lines, records = DirectoryLock(job.directory(tmp_path)), [], []
    assert lock.acquire()
    engine = InlineEngine()
    waiting = threading.Thread(target=lambda: records.extend(run_grid([job], tmp_path, engine, say=lines.append)))
    waiting.start()
    while len(lines) < 2:
        time.sleep(0.01)
    assert lines[-1] == "Waiting for 1 run that another process is making."
    assert not engine.made
    lock.release()
    waiting.join(60)
    assert [record.state for record in records] == ["finished"]


def test_engines_check_their_options():
    assert EngineOptions(processes=3).make(None) == LocalEngine(3)
    assert EngineOptions("ray", gpus_per_run=0.5, address="auto").make(None) == RayEngine("auto", None, 1, 0.5)
    for options, message in (
        ({"address": "auto"}, "Option --address is for --engine ray only"),
        ({"gpus_per_run": 1.0}, "Option --gpus-per-run is for --engine ray only"),
        ({"processes": -1}, "`processes` should be an integer of at least 1"),
        ({"processes": 0}, "`processes` should be an integer of at least 1"),
        ({"engine": "ray", "gpus_per_run": 1.5}, "a fraction of one GPU or a whole number"),
        ({"engine": "ray", "gpus_per_run": -0.5}, "`gpus_per_run` should be a non-negative"),
    ):
        with pytest.raises(ValueError, match=message):
            EngineOptions(**options).make(None)


def test_runs_of_one_server_do_not_touch_each_other(tmp_path):
    # The class ends its process as a fault in compiled code would, without a Python exception.
    (tmp_path / "crashing.py").write_text(
        "import os\nfrom toy import Toy\n\nclass Crashing(Toy):\n    def split(self, name):\n        os.abort()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        crashing = importlib.import_module("crashing")
        jobs = [
            *jobs_of(["BMLR"]),
            *jobs_of(["Joint"], data=crashing.Crashing()),
            *jobs_of(["Joint", "OPM"], seeds=(0, 1)),
        ]
        first, crashed, *others = run_grid(jobs, tmp_path / "runs", LocalEngine(2), say=quiet)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("crashing", None)
    assert crashed.state == "failed"
    assert crashed.failure["error"] == "The run's process was ended by SIGABRT."
    assert crashed.failure["config"]["method"]["class_path"] == "bmlr.methods.Joint"
    alone = run_grid([jobs[0], *jobs[2:]], tmp_path / "alone", InlineEngine(), say=quiet)
    for record, other in zip([first, *others], alone, strict=True):
        for name in ("best.safetensors", "last.safetensors", "predictions.safetensors"):
            assert (record.directory / name).read_bytes() == (other.directory / name).read_bytes(), name
    costs = make_plan(jobs_of(["Joint", "BMLR"]), tmp_path / "planned", LocalEngine()).costs()
    assert not (tmp_path / "planned").exists()
    assert all(0 < cost.seconds < 60 for cost in costs)
    weights = alone[0].result["parameters"] * 4  # of the best and the last epoch, and in the checkpoint with two means
    assert costs[0].bytes == 5 * weights


def command(folder, *more):
    return [
        sys.executable, "-m", "bmlr", "compare", "--data", "toy.Toy", "--methods", *METHODS, "--seeds", "0",
        "--runs", str(folder / "runs"), "--out", str(folder / "out"), "--baseline", "Joint", "--model.width", "2",
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.epochs", "6", *more,
    ]  # fmt: skip


def environment():
    return {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


def table_of(folder):
    """The final table without times."""
    table = pd.read_csv(folder / "out" / "table.csv", dtype=str, keep_default_na=False)
    return table.drop(columns="minutes").to_dict("list")


def pid_of_worker(run):
    """Process that makes a run: the one whose output is the run's log."""
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if link.readlink() == Path(run).resolve() / "log.txt":
                return int(link.parts[2])
    raise AssertionError(f"No process makes {run}.")


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_runs_end_with_the_grid_that_was_killed(tmp_path):
    with subprocess.Popen(  # noqa: S603
        command(tmp_path, "--trainer.epochs", "2000"), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        started = time.monotonic()
        while not (begun := list((tmp_path / "runs").glob("*/metrics.csv"))) and time.monotonic() - started < 120:
            time.sleep(0.2)
        try:
            pid = pid_of_worker(begun[0].parent)
            assert process_exists(pid)
        finally:  # leaving the block waits for the process, which would go on for minutes
            process.send_signal(signal.SIGKILL)
    started = time.monotonic()
    while process_exists(pid) and time.monotonic() - started < 30:
        time.sleep(0.1)
    assert not process_exists(pid)
    assert not (begun[0].parent / "failed.json").exists()


@pytest.mark.slow
def test_two_grids_on_one_folder_share_the_work(tmp_path):
    processes = [
        subprocess.Popen(command(tmp_path, "--out", str(tmp_path / f"out{number}")), env=environment(),  # noqa: S603
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    tables = [pd.read_csv(tmp_path / f"out{number}" / "table.csv") for number in range(2)]
    pd.testing.assert_frame_equal(*tables)  # the minutes too: they made each run once between them
    assert "failed" not in "".join(said)
    for log in (tmp_path / "runs").glob("*/log.txt"):
        assert log.read_text().count("epoch 1/6") == 1


@pytest.mark.slow
def test_ray_gives_what_the_local_engine_gives(tmp_path):
    jobs = [*jobs_of(seeds=(0, 1)), *jobs_of(["Joint"], data=Toy(poison=3))]
    local = run_grid(jobs, tmp_path / "local", LocalEngine(2), say=quiet)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + '/benchmark')\n"
        "from pathlib import Path\nfrom test_grid import *\n"
        "jobs = [*jobs_of(seeds=(0, 1)), *jobs_of(['Joint'], data=Toy(poison=3))]\n"
        "run_grid(jobs, Path(sys.argv[2]), RayEngine(processes=2))\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script, str(TESTS), str(tmp_path / "ray")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ray = run_grid([job for job in jobs if job.config.data.poison is None], tmp_path / "ray", InlineEngine(), say=quiet)
    assert numbers(ray) == numbers([record for record in local if record.state == "finished"])
    assert sorted(path.parent.name for path in (tmp_path / "ray").glob("*/failed.json")) == [local[-1].directory.name]


TOKEN = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture
def cluster():
    """The address of a Ray cluster with two cores that was there before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", "--block",
    ]  # fmt: skip
    with subprocess.Popen(  # noqa: S603
        command, env=environment() | TOKEN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        wait_until(lambda: reachable(port), 120)
        yield f"127.0.0.1:{port}"
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It took too long."
        time.sleep(0.2)


@pytest.mark.slow
def test_ray_tries_a_lost_run_again_on_a_cluster_there_was(tmp_path, cluster):
    folder = tmp_path / "ray"
    arguments = ("--engine", "ray", "--address", cluster, "--trainer.epochs", "40")
    with subprocess.Popen(  # noqa: S603
        command(folder, *arguments), env=environment() | TOKEN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        # A run that has begun; its parent is Ray's process, which goes as if its machine had.
        wait_until(lambda: list((folder / "runs").glob("*/metrics.csv")) or process.poll() is not None, 300)
        assert process.poll() is None, process.stderr.read()
        (begun, *_) = (folder / "runs").glob("*/metrics.csv")
        worker = pid_of_worker(begun.parent)
        parent = parent_of(parent_of(worker))
        assert b"ray::" in Path(f"/proc/{parent}/cmdline").read_bytes()
        os.kill(parent, signal.SIGKILL)
        said = process.communicate(timeout=550)[1]
    assert process.returncode == 0, said
    assert not list((folder / "runs").glob("*/failed.json")), said
    subprocess.run(  # noqa: S603
        command(tmp_path / "local", "--trainer.epochs", "40"), env=environment(), check=True, capture_output=True
    )
    assert table_of(folder) == table_of(tmp_path / "local")
    assert not list((folder / "runs").glob(".ray-*"))


def test_a_ray_cluster_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"There is no Ray cluster at 127.0.0.1:1: .*refused"):
        list(RayEngine("127.0.0.1:1").execute([Task(Path())]))


def test_different_options_are_different_runs(tmp_path):
    first = jobs_of(["Joint"])[0]
    second = jobs_of(["Joint"], optimizer=OptimizerOptions(lr=0.5))[0]
    assert first.directory(tmp_path) != second.directory(tmp_path)


@pytest.fixture
def worker(monkeypatch):
    """The worker's main function in this process, which no parent ends."""
    monkeypatch.setattr(worker_module, "_end_with_parent", lambda: None)
    monkeypatch.setenv(worker_module._LOCKED, "")
    return worker_module.main


def prepared_job(folder, **data):
    (job,) = jobs_of(["Joint"], data=Toy(**data))
    grid_module._write_config(job, folder)
    return job.directory(folder).resolve()


def test_a_worker_makes_its_run_and_removes_what_a_killed_one_left(tmp_path, worker):
    directory = prepared_job(tmp_path)
    (directory / ".metrics.csv.7.tmp").write_text("half")
    assert worker([str(directory), "toy"]) == DONE
    assert read_run(directory).state == "finished"
    assert not list(directory.glob(".*.tmp"))
    assert not DirectoryLock(directory).held_elsewhere()


def test_a_worker_leaves_a_run_to_the_process_that_has_it(tmp_path, worker):
    directory = prepared_job(tmp_path)
    with DirectoryLock(directory):
        assert worker([str(directory), "toy"]) == BUSY
        os.environ[worker_module._LOCKED] = str(directory)  # a process of that very run shares its lock
        assert worker([str(directory), "toy"]) == DONE


def test_a_worker_says_how_its_run_ended(tmp_path, worker, monkeypatch):
    directory = prepared_job(tmp_path, poison=3)
    assert worker([str(directory), "toy"]) == FAILED
    assert read_run(directory).state == "failed"

    def stopped(*_, **__):
        raise RunInterruptedError("stopped")

    monkeypatch.setattr(worker_module, "train", stopped)
    assert worker([str(directory), "toy"]) == STOPPED
    assert read_run(directory).state == "unfinished"  # the failure before is forgotten


class Cluster:
    """What the engine asks Ray about its machines."""

    def __init__(self, *machines):
        self.machines = [{"Alive": True, "Resources": machine} for machine in machines]
        self.machines.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})

    def nodes(self):
        return self.machines


@pytest.mark.parametrize(
    ("engine", "machines", "gpus"),
    [
        (RayEngine(), [{"CPU": 2.0}], 0),
        (RayEngine(), [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 4.0}], 1),
        (RayEngine(gpus_per_run=0.5), [{"CPU": 2.0, "GPU": 1.0}], 0.5),
        (RayEngine(gpus_per_run=0), [{"CPU": 2.0, "GPU": 1.0}], 0),
        (RayEngine(cpus_per_run=4), [{"CPU": 2.0}], r"A run needs 4 cores, but no machine .* has more than 2\."),
        (RayEngine(gpus_per_run=2), [{"CPU": 2.0, "GPU": 1.0}], r"A run needs 2 GPUs, but no machine .* more than 1\."),
        (RayEngine(), [], r"A run needs 1 cores, but no machine .* more than 0\."),
    ],
)
def test_what_no_machine_of_a_cluster_has_is_told_before_the_first_run(engine, machines, gpus):
    if isinstance(gpus, str):
        with pytest.raises(ValueError, match=gpus):
            engine._gpus(Cluster(*machines))
    else:
        assert engine._gpus(Cluster(*machines)) == gpus


def test_addresses_that_are_no_host_and_port_are_left_to_ray():
    for address in ("auto", "local", "ray://"):
        engines_module._check_reachable(address)
    with pytest.raises(ValueError, match="There is no Ray cluster at ray://127.0.0.1:1"):
        engines_module._check_reachable("ray://127.0.0.1:1")


class Lost:
    """Ray, in whose hands a task ends with a status or is lost."""

    class exceptions:  # noqa: N801  (named as Ray's module)
        class RayError(Exception):
            pass

    def get(self, reference):
        if reference is None:
            raise self.exceptions.RayError
        return reference


def test_a_run_that_ray_has_lost_has_a_status_of_its_own():
    assert engines_module._exit_status(Lost(), 3) == 3
    assert engines_module._exit_status(Lost(), None) == engines_module.LOST
