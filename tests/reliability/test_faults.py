"""Damaged files of a run, and a full disk: the next start goes on, or says what is broken and what to do."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from damage import cut, flip
from interruptions import CPU, Stop, assert_same_run, stopping

from bmlr._files import atomic_write_text
from bmlr.cli import main
from bmlr.config import read_config
from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.store._build import prepare_samples
from bmlr.data.store._cache import cached_arrays
from bmlr.data.store._samples import SourceSample
from bmlr.methods import BMLR
from bmlr.runs import RunError
from bmlr.runs.storage import read_checkpoint, read_weights, write_checkpoint, write_weights
from bmlr.training import evaluate_run, load, train
from toy import Toy

OPTIONS = dataclasses.replace(CPU, checkpoint_every=2)
POSITIONS = range(30)


def run(folder, method=None, **options):
    return train(Toy(24), method or BMLR(), trainer=OPTIONS, run=folder, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run stopped in its second epoch: checkpoints of steps 3 (end of the epoch) and 4, weights of the first."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Stop):
        run(folder, stopping(BMLR(), 5, None))
    assert {"last.ckpt", "previous.ckpt", "best.safetensors"} <= {path.name for path in folder.iterdir()}
    return folder


def damaged(source, target, name, change, number):
    shutil.copytree(source, target)
    path = target / name
    path.write_bytes(change(path.read_bytes(), number))
    return path


def assert_one_sentence_that_helps(error, name):
    message = str(error)
    assert name in message
    assert "\n" not in message
    assert any(word in message for word in ("Remove", "remove", "Put it back")), message


def check_resumes_or_says(folder, name, whole):
    try:
        run(folder, resume=True)
    except RunError as error:
        assert_one_sentence_that_helps(error, name)
        return False
    assert_same_run(folder, whole)
    return True


@pytest.mark.parametrize("change", [cut, flip])
@pytest.mark.parametrize("name", ["last.ckpt", "best.safetensors", "metrics.csv", "config.yaml"])
def test_a_damaged_file_of_an_interrupted_run(tmp_path, interrupted, finished, name, change, caplog):
    """Thirty positions each; a run that goes on to its end is expensive and need not be seen thirty times."""
    outcomes = []
    for number in POSITIONS:
        path = damaged(interrupted, tmp_path / str(number), name, change, number)
        if name == "last.ckpt" and number >= 3:
            with pytest.raises(ValueError, match=r"last\.ckpt"):
                read_checkpoint(path)
        elif name == "metrics.csv" and number >= 3:
            continue  # it is not read, and is written anew from the checkpoint: three are enough
        else:
            outcomes.append(check_resumes_or_says(path.parent, name, finished))
        shutil.rmtree(path.parent)
    if name == "last.ckpt":  # goes on from the one before
        assert outcomes == [True] * 3
        assert "last.ckpt is damaged; the run goes on from the one before it" in caplog.text
    elif name == "metrics.csv":
        assert outcomes == [True] * 3
    elif name == "best.safetensors":
        assert not any(outcomes)
    else:  # a cut in the first line of a configuration, or a flip there, may leave what matters whole
        assert sum(outcomes) <= 2


@pytest.mark.parametrize("change", [cut, flip])
@pytest.mark.parametrize("name", ["result.json", "metrics.csv", "config.yaml", "data.json", "best.safetensors"])
def test_a_damaged_file_of_a_finished_run(tmp_path, finished, name, change):
    """Its start says so, or mends it, or has no need of the file; the result is never another one."""
    expected = json.loads((finished / "result.json").read_text())
    said = 0
    for number in POSITIONS:
        path = damaged(finished, tmp_path / str(number), name, change, number)
        try:
            result = run(path.parent)
        except RunError as error:
            assert_one_sentence_that_helps(error, name)
            said += 1
        else:
            assert result.reused
            assert result.content == expected
            assert read_config(path.parent / "config.yaml").digest == expected["digest"]
        if number == 0 and name in {"result.json", "metrics.csv"}:  # what it says to do helps
            (path.parent / "result.json").unlink()
            run(path.parent, resume=True)
            assert_same_run(path.parent, finished)
        shutil.rmtree(path.parent)
    assert said == (30 if name in {"result.json", "metrics.csv"} else 0)


@pytest.mark.parametrize("change", [cut, flip])
@pytest.mark.parametrize("name", ["best.safetensors", "config.yaml"])
def test_a_damaged_run_is_not_evaluated(tmp_path, finished, name, change):
    expected = evaluate_run(finished)
    scored = 0
    for number in POSITIONS:
        path = damaged(finished, tmp_path / str(number), name, change, number)
        with contextlib.suppress(RunError, ValueError):
            assert evaluate_run(path.parent) == expected
            scored += 1
        shutil.rmtree(path.parent)
    assert scored <= (2 if name == "config.yaml" else 0)


def test_the_command_line_says_it_in_one_sentence(tmp_path, interrupted, capsys, monkeypatch):
    shutil.copytree(interrupted, tmp_path / "r")
    (tmp_path / "r" / "previous.ckpt").unlink()
    path = tmp_path / "r" / "last.ckpt"
    path.write_bytes(flip(path.read_bytes(), 0))
    arguments = ["train", "--config", str(tmp_path / "r" / "config.yaml"), "--run", str(tmp_path / "r"), "--resume"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("bmlr: error: ")
    assert "last.ckpt is damaged or no checkpoint. Remove it to start the run from its beginning." in error
    assert error.count("\n") == 1


# Checkpoints


def test_the_run_goes_on_from_the_checkpoint_before_and_keeps_it(tmp_path, interrupted, finished, caplog):
    path = damaged(interrupted, tmp_path / "x", "last.ckpt", flip, 1)
    whole = (path.parent / "previous.ckpt").read_bytes()
    with caplog.at_level(logging.WARNING, "bmlr.training"), pytest.raises(Stop):
        run(path.parent, stopping(BMLR(), 2, None), resume=True)
    assert "goes on from the one before it" in caplog.text
    assert (path.parent / "previous.ckpt").read_bytes() == whole  # the damaged one has not taken its place
    assert read_checkpoint(path)["bmlr"]["position"] == 1
    run(path.parent, resume=True)
    assert_same_run(path.parent, finished)


def test_the_run_goes_on_when_it_was_killed_between_the_two_moves(tmp_path, interrupted, finished, caplog):
    shutil.copytree(interrupted, tmp_path / "x")
    (tmp_path / "x" / "last.ckpt").unlink()
    (tmp_path / "x" / ".last.ckpt.1.tmp").write_bytes(b"half")
    run(tmp_path / "x", resume=True)
    assert_same_run(tmp_path / "x", finished)
    assert not caplog.text
    assert {path.name for path in (tmp_path / "x").iterdir()} == {path.name for path in finished.iterdir()}


def test_two_damaged_checkpoints_are_named(tmp_path, interrupted):
    path = damaged(interrupted, tmp_path / "x", "last.ckpt", flip, 1)
    (path.parent / "previous.ckpt").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"last.ckpt and previous.ckpt are damaged.* Remove them to start"):
        run(path.parent, resume=True)
    path.unlink()
    (path.parent / "previous.ckpt").unlink()
    run(path.parent, resume=True)


def test_a_checkpoint_without_its_checksum_is_damaged(tmp_path, interrupted):
    path = damaged(interrupted, tmp_path / "x", "last.ckpt", lambda content, _: content[:-71], 0)
    assert "bmlr_run" in torch.load(path, weights_only=True)  # whole, but nothing says so
    with pytest.raises(ValueError, match="has no checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize(("section", "name"), [("bmlr_run", "test_scores"), ("bmlr", "plan")])
def test_a_checkpoint_of_another_version_is_named_as_such(tmp_path, interrupted, section, name):
    shutil.copytree(interrupted, tmp_path / "r")
    content = read_checkpoint(tmp_path / "r" / "last.ckpt")
    del content[section][name]
    write_checkpoint(tmp_path / "r" / "last.ckpt", content)
    with pytest.raises(
        RunError, match=rf"last.ckpt is of another version of bmlr: it lacks {name}. Remove it to start"
    ):
        run(tmp_path / "r", resume=True)


@pytest.mark.parametrize("mask", [1, 16])  # 16 marks an entry of the archive as a folder, which torch reads as nothing
def test_every_byte_of_a_checkpoint_is_covered(tmp_path, mask):
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, {"bmlr_run": {}, "x": torch.arange(3)})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"x\.ckpt"):
            read_checkpoint(path)


def test_every_byte_of_the_weights_is_covered(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": torch.arange(3),
        "b": torch.tensor(True),
        "c": torch.rand(2, 2).bfloat16(),
        "d": torch.zeros(0, 2),
        "e": torch.rand(3, 2).T,
    }
    write_weights(path, tensors)
    whole = path.read_bytes()
    assert all(torch.equal(value, tensors[name]) for name, value in read_weights(path).items())
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read_weights(path)


def test_weights_of_other_programs_have_no_checksum_and_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_weights(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]


# Configurations


def test_a_changed_configuration_is_noticed_and_can_be_meant(tmp_path, finished):
    text = (finished / "config.yaml").read_text()
    changed = text.replace("samples: 24", "samples: 12")
    assert changed != text
    path = tmp_path / "config.yaml"
    path.write_text(changed)
    with pytest.raises(
        ValueError, match=r"does not fit its checksum: .* remove its first line if the change was meant"
    ):
        read_config(path)
    path.write_text(changed.replace("sha256", "sha255", 1))  # no more than what is left of a checksum
    with pytest.raises(ValueError, match="does not fit its checksum"):
        read_config(path)
    path.write_text(changed.partition("\n")[2])
    assert read_config(path).data.samples == 12


def test_a_damaged_configuration_of_a_finished_run_is_mended(tmp_path, finished, caplog):
    path = damaged(finished, tmp_path / "x", "config.yaml", cut, 0)
    assert run(path.parent).reused
    assert "was damaged and has been written again" in caplog.text
    assert path.read_text() == (finished / "config.yaml").read_text()
    load(path.parent)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a checkpoint but not for two."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


def fill(folder, leave):
    """Fill a disk up to so many bytes; the file that does it."""
    space = os.statvfs(folder)
    path = folder / "ballast"
    path.write_bytes(b"0" * max(0, space.f_bavail * space.f_bsize - leave))
    return path


@pytest.mark.parametrize("leave", [8_192, 40_960, 150_000, 300_000, 500_000, 800_000])
def test_a_full_disk_stops_a_run_with_a_sentence_and_it_goes_on_later(small_disk, finished, leave):
    ballast = fill(small_disk, leave)
    with pytest.raises(RunError) as caught:
        run(small_disk / "run")
    message = str(caught.value)
    assert "No space left on device" in message
    assert "\n" not in message
    assert not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)  # noqa: S603, S607
    run(small_disk / "run", resume=True)
    assert_same_run(small_disk / "run", finished)


def vectors(folder):
    """Thirty files of 40 kB, which do not fit on a small disk together."""
    for number in range(30):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).normal(size=10_000).astype(np.float32))
        yield SourceSample(str(number), "one", files={"x": folder / f"{number}.npy"})


def prepared(items, dest):
    return prepare_samples("toy", items, {"x": ArrayReader()}, ["one"], dest, key={}, workers=0, progress=False)


def room_for_more(disk):
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)  # noqa: S603, S607


@pytest.mark.parametrize("leave", [0, 30_000, 300_000, 900_000, 1_450_000, 2_600_000])
def test_a_full_disk_stops_a_preparation_with_a_sentence_and_it_goes_on_later(tmp_path, small_disk, leave):
    """The last two sizes have room for the decoded samples, but not for the packed values or the manifest too."""
    items = list(vectors(tmp_path))
    ballast = fill(small_disk, leave)
    with pytest.raises(ValueError, match="No space left on device") as caught:
        prepared(items, small_disk / "out")
    assert "\n" not in str(caught.value)
    assert "What was read is kept: the same call goes on from there." in str(caught.value)
    done = len(list(small_disk.glob("out/.*/samples/[0-9]*.npz")))
    assert (done == 30) == (leave > 1_400_000)
    ballast.unlink()
    room_for_more(small_disk)
    result = prepared(items, small_disk / "out")
    assert result.decoded == 30 - done
    whole = prepared(items, tmp_path / "whole").folder
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in result.folder.iterdir()
    }


@pytest.mark.parametrize("leave", [0, 4_096, 100_000, 164_000])
def test_a_full_disk_stops_the_cache_with_a_sentence_and_it_is_made_later(small_disk, leave):
    arrays = {"x": np.arange(20_000.0), "y": np.arange(3)}
    ballast = fill(small_disk, leave)
    with pytest.raises(OSError, match=r"(No space left|disk is full).*`BMLR_CACHE`"):
        cached_arrays("k", {}, lambda: arrays, small_disk / "cache")
    assert not list(small_disk.rglob(".*"))
    ballast.unlink()
    assert cached_arrays("k", {}, lambda: arrays, small_disk / "cache", verify=True)["x"].sum() == arrays["x"].sum()


def test_a_text_that_does_not_fit_leaves_the_old_one(small_disk):
    atomic_write_text(small_disk / "x", "old")
    fill(small_disk, 4096)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(small_disk / "x", "new" * 100_000)
    assert (small_disk / "x").read_text() == "old"
    assert not list(small_disk.glob(".*"))
