"""A training command killed at random moments always goes on to the same result."""

import os
import random
import signal
import time

import pytest
from commands import TRAINING, Command, Forked, fork_server
from interruptions import assert_same_run

#: A hundred steps in four epochs, with a checkpoint every five.
ARGUMENTS = [
    "train", "--data=toy.Toy", "--data.samples=200", "--method=BMLR", "--trainer.epochs=4", "--trainer.batch_size=8",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.checkpoint_every=5", "--resume=true",
]  # fmt: skip
#: Exit status of a run that a signal stopped.
STOPPED = {signal.SIGTERM: 2, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def server():
    with fork_server(*TRAINING) as process:
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
            assert code in {STOPPED[how], -how}, errors
            assert "Traceback" not in errors
        in_training += "with a checkpoint after step" in errors
        last = (errors.strip().splitlines() or [""])[-1]
        if code == STOPPED.get(how) and last != "bmlr: Stopped by Ctrl-C. Nothing was kept.":
            assert last.removeprefix("bmlr: ").removeprefix("error: ").startswith("The run in")
            assert "--resume" in last or "the same command starts it again" in last
    for folder in folders:
        finish(command, folder)
        assert_same_run(tmp_path / "whole", folder)
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    return in_training, len(folders)


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGINT))],
    ids=str,
)
def test_killed_at_random_moments_a_run_ends_the_same(tmp_path, server, how):
    killed_again_and_again(tmp_path, Forked(server, tmp_path / "errors"), how, 3, longest=1.0)


def wait_for_words(path, words):
    """Wait until a process has written these words into a file, which it makes once it has started."""
    deadline = time.monotonic() + 60
    while not (path.exists() and words in path.read_text()):
        assert time.monotonic() < deadline, f"Nothing said {words!r}."
        time.sleep(0.01)


def test_ctrl_c_says_what_is_kept_and_twice_stops_at_once(tmp_path, server):
    """In the first step, in validation, twice; with workers, to whom the terminal sends it too."""
    command = Forked(server, tmp_path / "errors", tmp_path / "output")
    folder = tmp_path / "run"
    method = ["--method=toy.WaitingJoint", f"--method.folder={tmp_path}"]
    arguments = [*ARGUMENTS, *method, "--trainer.num_workers=2", "--run", str(folder)]
    answer = "bmlr: stopping after this step, with a checkpoint; Ctrl-C again stops at once."

    def stop(event, times):
        for path in (command.output, command.errors):  # those of the run before
            path.unlink(missing_ok=True)
        process = command.start(arguments)
        wait_for_words(command.output, f"\n{event}\n")
        os.killpg(process, signal.SIGINT)
        wait_for_words(command.errors, answer)
        if times == 2:
            os.killpg(process, signal.SIGINT)
        else:
            (tmp_path / f"go-{event}").touch()
        assert command.ended(60) == 130
        first, *_, last = command.errors.read_text().strip().splitlines()
        assert first == answer
        return last

    beginning = f"bmlr: The run in {folder} was stopped by"
    assert (
        stop("step", 2) == f"{beginning} a second Ctrl-C. It has no checkpoint yet: the same command starts it again."
    )
    assert stop("step", 1) == (
        f"{beginning} Ctrl-C with a checkpoint after step 1, 0 of 4 epochs done. Continue it with --resume."
    )
    assert stop("prediction", 1) == (
        f"{beginning} Ctrl-C with a checkpoint after step 25, 1 of 4 epochs done. Continue it with --resume."
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_real_command_killed_thirty_times_ends_the_same(tmp_path, how):
    found = killed_again_and_again(tmp_path, Command(tmp_path / "errors"), how, 30, longest=5.0)
    print(f"{how!r}: 30 times, {found[0]} of them with a checkpoint at once, {found[1]} runs")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_killed_two_hundred_times_a_run_ends_the_same(tmp_path, server, how):
    found = killed_again_and_again(tmp_path, Forked(server, tmp_path / "errors"), how, 200, longest=2.0)
    print(f"{how!r}: 200 times, {found[0]} of them with a checkpoint at once, {found[1]} runs")
