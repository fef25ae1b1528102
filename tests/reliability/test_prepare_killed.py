"""A preparation of videos and recordings that is killed at random moments goes on, and ends as one that was not."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from commands import TESTS, Command, Forked, chance, finish, fork_server, kill_at_random

from bmlr.data.store._store import open_store

sys.path.append(str(TESTS / "data"))

for _name in ("av", "librosa", "soundfile", "PIL"):
    pytest.importorskip(_name)
HOW = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)


@pytest.fixture(scope="module")
def server():
    with fork_server("warm_media", "bmlr.commands.prepare", "jsonargparse") as process:
        yield process


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """CREMA-D's folders with 60 clips, one of them no video."""
    from media_fixtures import write_crema_d

    folder = write_crema_d(tmp_path_factory.mktemp("source"), seconds=0.6)
    (folder / "VideoFlash" / "1003_TIE_SAD_XX.flv").write_bytes(b"FLV\x01nothing")
    return folder


def arguments(source, dest, workers=0):
    return [
        "prepare", "crema-d", str(source), str(dest), "--size", "64", "--fps", "5", "--progress", "false",
        "--workers", str(workers), *(f"--{split}_list={source / split}.csv" for split in ("train", "test")),
    ]  # fmt: skip


def pieces(dest):
    """Names of the files of the samples decoded so far."""
    return {path.name for path in dest.glob(".*.partial/samples/[0-9]*.npz")}


def contents(dest):
    """All files of the only folder there."""
    (folder,) = dest.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_again_and_again(tmp_path, command, source, how, times, workers=(0,)):
    """Kill preparations so many times, then finish them; how many there were, and how often clips were kept."""
    whole = tmp_path / "whole"
    longest = finish(command, arguments(source, whole))
    expected, stored = contents(whole), len(open_store(next(whole.iterdir())))
    assert stored == 59
    rng = chance(how)
    kills, kept, dests = 0, 0, [tmp_path / "cut0"]
    before: set[str] = set()
    while kills < times:
        number = rng.choice(workers)
        seconds = rng.uniform(0, longest if number == 0 else longest + 4)
        code, killed = kill_at_random(command, arguments(source, dests[-1], number), how, seconds)
        time.sleep(0.5 if number else 0)  # orphaned workers end
        after = pieces(dests[-1])
        if killed:
            kills += 1
            kept += bool(after)
            assert before <= after or not after  # added to; or moved into place already
            before = after
            if code == 2:
                assert how == signal.SIGTERM
                error = command.errors.read_text()
                assert re.fullmatch(
                    r"bmlr: error: The preparation in \S+ was stopped by SIGTERM\. .* the same call .*\n", error
                )
            else:
                assert code == -how
            continue
        assert code == 0, command.errors.read_text()
        assert_read_once(command, len(before), stored)
        assert contents(dests[-1]) == expected
        dests.append(tmp_path / f"cut{len(dests)}")
        before = set()
        longest *= 0.8  # the machine is less busy than it was
    finish(command, arguments(source, dests[-1]))
    assert_read_once(command, len(before), stored)
    for dest in dests:
        assert contents(dest) == expected
    return len(dests), kept


def assert_read_once(command, before, stored):
    """What the last call says it has read is what had no file yet; the clip that is none is tried each time."""
    said = command.output.read_text()
    found = re.search(r"^(\d+) read by this call$", said, flags=re.MULTILINE)
    assert "1 rejected" in said
    read = int(found[1]) if found else 0
    assert read == 1 + stored - before or (read == 0 and before == 0), said  # 0: it was killed after its last step


def commands(tmp_path):
    return {"errors": tmp_path / "errors", "output": tmp_path / "output"}


@HOW
def test_killed_a_few_times_a_preparation_ends_the_same(tmp_path, server, source, how):
    killed_again_and_again(tmp_path, Forked(server, **commands(tmp_path)), source, how, 3)


@pytest.mark.slow
@HOW
def test_killed_thirty_times_a_preparation_ends_the_same(tmp_path, server, source, how):
    found = killed_again_and_again(tmp_path, Forked(server, **commands(tmp_path)), source, how, 30)
    print(f"{how!r}: 30 times, {found[1]} of them with clips that were kept, {found[0]} preparations")


@pytest.mark.slow
@HOW
def test_the_real_command_with_workers_killed_ends_the_same(tmp_path, source, how):
    command = Command(**commands(tmp_path))
    found = killed_again_and_again(tmp_path, command, source, how, 6, workers=(1, 2))
    print(f"{how!r}: 6 times with workers, {found[1]} of them with clips that were kept, {found[0]} preparations")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_workers_end_with_a_command_that_is_killed_alone(tmp_path, source):
    command = Command(**commands(tmp_path))
    process = command.start(arguments(source, tmp_path / "out", workers=2))
    deadline = time.monotonic() + 120
    while not pieces(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    assert len(children) >= 2
    os.kill(process, signal.SIGKILL)
    command.ended(60)
    deadline = time.monotonic() + 30
    while left := [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    finish(command, arguments(source, tmp_path / "out"))
