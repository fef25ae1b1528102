"""A training command killed at random moments always goes on to the same result."""

import os
import random
import signal
import time

import pytest
from commands import Command, Forked, fork_server
from interruptions import assert_same_run

#: A hundred steps in four epochs, with a checkpoint every five.
ARGUMENTS = [
    "train", "--data=toy.Toy", "--data.samples=200", "--method=BMLR", "--trainer.epochs=4", "--trainer.batch_size=8",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.checkpoint_every=5", "--resume=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with fork_server() as process:
        yield process


def finish(command, folder, seconds=300):
    command.start([*ARGUMENTS, "--run", str(folder)])
    assert command.ended(seconds) == 0, command.errors.read_text()


def wait_for_start(command, folder, before):
    """Wait until a process has written something into its run, or ended."""
    deadline = time.monotonic() + 120
    while command.ended(0) is None and time.monotonic() < deadline:
        path = folder / "config.yaml"
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.005)


def kill_at_random(command, folder, how, rng, workers, longest):
    """Start the command, signal it somewhere; whether it was still there, and how it ended."""
    path = folder / "config.yaml"
    before = path.stat().st_mtime_ns if path.exists() else None
    process = command.start([*ARGUMENTS, "--trainer.num_workers", str(workers), "--run", str(folder)])
    wait_for_start(command, folder, before)
    if command.ended(rng.uniform(0, longest)) is not None:
        return False, command.ended(0)
    os.killpg(process, how)  # with the processes that load data, as a scheduler does
    code = command.ended(120)
    assert code is not None, "The process did not end."
    return code != 0, code


def killed_again_and_again(tmp_path, command, how, times, longest):
    """Kill runs at random moments so many times, then finish them; how often they had got to a checkpoint."""
    finish(command, tmp_path / "whole")
    rng = random.Random(int(how))  # noqa: S311
    kills, folders, in_training = 0, [tmp_path / "cut0"], 0
    while kills < times:
        folder = folders[-1]
        killed, code = kill_at_random(command, folder, how, rng, rng.choice([0, 0, 2]), longest)
        if not killed:
            assert code == 0, command.errors.read_text()
            folders.append(tmp_path / f"cut{len(folders)}")
            continue
        kills += 1
        errors = command.errors.read_text()
        if how == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:  # before the run's own beginning and after its end the process ends as any does
            assert code in {2, -signal.SIGTERM}, errors
            assert "Traceback" not in errors
        in_training += code == 2 and "with a checkpoint after step" in errors
        if code == 2:
            last = errors.strip().splitlines()[-1]
            assert last.startswith("bmlr: error: The run in")
            assert "--resume" in last
    for folder in folders:
        finish(command, folder)
        assert_same_run(tmp_path / "whole", folder)
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    return in_training, len(folders)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_killed_at_random_moments_a_run_ends_the_same(tmp_path, server, how):
    killed_again_and_again(tmp_path, Forked(server, tmp_path / "errors"), how, 3, longest=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_the_real_command_killed_thirty_times_ends_the_same(tmp_path, how):
    found = killed_again_and_again(tmp_path, Command(tmp_path / "errors"), how, 30, longest=5.0)
    print(f"{how!r}: 30 times, {found[0]} of them with a checkpoint at once, {found[1]} runs")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_killed_two_hundred_times_a_run_ends_the_same(tmp_path, server, how):
    found = killed_again_and_again(tmp_path, Forked(server, tmp_path / "errors"), how, 200, longest=2.0)
    print(f"{how!r}: 200 times, {found[0]} of them with a checkpoint at once, {found[1]} runs")
