import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr.data.store._build
from bmlr._files import with_checksum
from bmlr.data import Modality, prepare
from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._base import FileContent
from bmlr.data.store._build import prepare_samples
from bmlr.data.store._interrupt import exit_on_sigterm
from bmlr.data.store._options import PrepareOptions
from bmlr.data.store._samples import Rejection, SourceSample
from bmlr.data.store._store import find_store, open_store, read_rejected
from forks import fork_context

sys.path.insert(0, str(Path(__file__).parent))


FAULTS = {
    "denied": PermissionError(errno.EACCES, "Permission denied"),
    "away": OSError(errno.ESTALE, "Stale file handle"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "memory": MemoryError(),
    "vanished": FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "home": RuntimeError("could not determine the home directory"),
}


@dataclasses.dataclass(frozen=True)
class CountingReader:
    """Reads .npy files, and leaves a mark for each it has read; some names make it misbehave."""

    marks: Path
    shape: tuple[int, ...] = (3,)

    @property
    def modality(self):
        return Modality("sequence" if -1 in self.shape else "vector", self.shape)

    @property
    def parameters(self):
        return {"shape": self.shape}

    def __call__(self, path, interval=None):
        with (self.marks / "read").open("a") as file:
            file.write(f"{path.name}\n")
        if "slow" in path.name:
            time.sleep(0.2)
        if "crash" in path.name:
            os.kill(os.getpid(), signal.SIGABRT)
        if "killed" in path.name and not (self.marks / "go").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in path.name and not (self.marks / "go").exists():
            time.sleep(60)
        if "odd" in path.name:
            raise ValueError("the decoder lost its way")
        for word, error in FAULTS.items():
            if word in path.name and not (self.marks / "go").exists():
                raise error
        if "term" in path.name and not (self.marks / "go").exists():
            with contextlib.suppress(BaseException if "swallowed" in path.name else ()):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        if "stop" in path.name and not (self.marks / "go").exists():
            raise KeyboardInterrupt
        return FileContent(np.load(path, allow_pickle=False), 1.5)


@pytest.fixture
def marks(tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def _forked_workers(monkeypatch):
    """Workers that need not import everything first; the other tests of workers start theirs as a user's are."""
    monkeypatch.setattr("bmlr.data.store._workers._CONTEXT", fork_context())


def reads(marks):
    return (marks / "read").read_text().split() if (marks / "read").exists() else []


def make_items(folder, names, shape=(3,), label="one"):
    items = []
    for number, name in enumerate(names):
        path = folder / f"{name}.npy"
        np.save(path, np.full(shape, number, np.float32))
        items.append(SourceSample(name, label, "train", f"group{number % 2}", {"x": path}, {"number": number}))
    return items


def run(tmp_path, items, marks, **changes):
    arguments = {"key": {}, "workers": 0, "progress": False, **changes}
    reader = arguments.pop("reader", CountingReader(marks))
    readers = arguments.pop("readers", {"x": reader})
    return prepare_samples("toy", items, readers, ["one", "two"], tmp_path / "out", **arguments)


def contents(folder):
    """All of a store that does not depend on when it was made."""
    store = open_store(folder, verify=True)
    arrays = {m: np.asarray(a) for m, a in store.arrays.items()}
    return store.samples, store.targets.tolist(), arrays, {m: o.tolist() for m, o in store.offsets.items()}


def assert_same(first, second):
    one, two = contents(first), contents(second)
    assert (one[0], one[1], one[3]) == (two[0], two[1], two[3])
    assert one[2].keys() == two[2].keys()
    for name, array in one[2].items():
        np.testing.assert_array_equal(array, two[2][name])


class TestStore:
    def test_holds_what_was_read(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b", "c"])
        items[1] = dataclasses.replace(items[1], label="two", group=None, split=None)
        result = run(tmp_path, items, marks)
        assert (result.decoded, result.rejected, result.classes) == (3, (), ("one", "two"))
        assert result.counts == {"train": {"one": 2, "two": 0}, "": {"one": 0, "two": 1}}
        store = open_store(result.folder, verify=True)
        assert len(store) == 3
        np.testing.assert_array_equal(store.arrays["x"], [[0] * 3, [1] * 3, [2] * 3])
        assert isinstance(store.arrays["x"], np.memmap)
        assert not store.arrays["x"].flags.writeable
        assert store.targets.tolist() == [0, 1, 0]
        assert [(clip.id, clip.group, clip.split) for clip in store.samples] == [
            ("a", "group0", "train"),
            ("b", "b", None),
            ("c", "group0", "train"),
        ]
        about = store.samples[2].files["x"]
        assert (about["name"], about["bytes"], about["seconds"]) == ("c.npy", 140, 1.5)
        assert len(about["sha256"]) == 64
        assert store.samples[2].extra == {"number": 2}
        assert store.modalities["x"] == Modality("vector", (3,))

    def test_needs_no_sources(self, tmp_path, marks):
        items = make_items(tmp_path, ["a"])
        folder = run(tmp_path, items, marks).folder
        items[0].files["x"].unlink()
        folder = folder.rename(tmp_path / "moved")
        assert open_store(folder).values("x", 0).tolist() == [[0, 0, 0]]

    def test_has_only_its_files(self, tmp_path, marks):
        folder = run(tmp_path, make_items(tmp_path, ["a"]), marks).folder
        assert sorted(path.name for path in folder.iterdir()) == [
            "manifest.json", "rejected.csv", "targets.npy", "x.npy", "x_offsets.npy",
        ]  # fmt: skip
        assert list((tmp_path / "out").iterdir()) == [folder]
        assert json.loads((folder / "manifest.json").read_text())["versions"]["numpy"] == np.__version__

    @settings(deadline=None, max_examples=20)
    @given(
        lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
        absent=st.sets(st.integers(0, 5)),
        row=st.sampled_from([(), (2,), (2, 3)]),
        dtype=st.sampled_from(["uint8", "float16", "float32", ">f8", "int64"]),
    )
    def test_sequences_of_any_length_and_missing_modalities(self, tmp_path_factory, lengths, absent, row, dtype):
        folder = tmp_path_factory.mktemp("store")
        rng = np.random.default_rng(0)
        values = [rng.integers(0, 99, (length, *row)).astype(dtype) for length in lengths]
        items = []
        for i, array in enumerate(values):
            np.save(folder / f"{i}.npy", array)
            np.save(folder / f"v{i}.npy", np.array([i]))
            files = {"v": folder / f"v{i}.npy"} | ({} if i in absent else {"x": folder / f"{i}.npy"})
            items.append(SourceSample(str(i), "one", files=files))
        readers = {"x": CountingReader(folder, (-1, *row)), "v": ArrayReader()}
        store = open_store(run(folder, items, folder, readers=readers).folder)
        for i, array in enumerate(values):
            found = store.values("x", i)
            if i in absent:
                assert len(found) == 0
            else:
                np.testing.assert_array_equal(found, array)
                assert found.dtype == np.dtype(dtype)
            assert store.values("v", i).tolist() == [[i]]
        assert store.present("x").tolist() == [i not in absent for i in range(len(values))]
        assert store.present("v").all()

    def test_a_modality_no_sample_has(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b"])
        store = open_store(run(tmp_path, items, marks, readers={"x": ArrayReader(), "y": ArrayReader()}).folder)
        assert not store.present("y").any()
        assert store.present("x").all()

    def test_damage_is_noticed(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b"])
        folder = run(tmp_path, items, marks).folder
        content = bytearray((folder / "x.npy").read_bytes())
        content[-1] ^= 1
        (folder / "x.npy").write_bytes(content)
        open_store(folder)
        with pytest.raises(ValueError, match="is damaged"):
            open_store(folder, verify=True)
        (folder / "x.npy").write_bytes(content[:-1])
        with pytest.raises(ValueError, match="is damaged"):
            open_store(folder)
        assert run(tmp_path, items, marks).decoded == 2
        open_store(folder, verify=True)

    def test_absent_and_foreign_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no prepared data"):
            open_store(tmp_path)
        manifest = {"version": 1, "key": {}, "arrays": {}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="is damaged. Remove the folder and prepare it again"):
            open_store(tmp_path)
        (tmp_path / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
        with pytest.raises(ValueError, match="not prepared data"):
            open_store(tmp_path)


class TestAgain:
    def test_does_nothing(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b", "odd", *"cdefghijklmnopqrstuvw"])
        first = run(tmp_path, items, marks)
        number, files = len(reads(marks)), {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
        second = run(tmp_path, items, marks)
        assert second == dataclasses.replace(first, decoded=0)
        assert len(second.rejected) == 1
        assert len(reads(marks)) == number
        assert files == {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}

    def test_anything_changed_is_another_folder(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b"])
        folders = [run(tmp_path, items, marks).folder, run(tmp_path, items, marks, key={"fps": 2}).folder]
        folders.append(run(tmp_path, items[:1], marks).folder)
        folders.append(run(tmp_path, [items[0], dataclasses.replace(items[1], split="test")], marks).folder)
        folders.append(run(tmp_path, items, marks, readers={"x": ArrayReader()}).folder)
        np.save(items[1].files["x"], np.zeros(3))  # another size: float64
        folders.append(run(tmp_path, items[1:], marks).folder)
        assert len(set(folders)) == 6
        assert all(folder.name.startswith("toy-") for folder in folders)

    def test_workers_and_threshold_do_not_matter(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b"])
        assert run(tmp_path, items, marks).folder == run(tmp_path, items, marks, workers=2, max_rejected=1.0).folder


class TestInterruption:
    def test_continues_with_the_missing_ones_only(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b", "c", "stop", "d", "e"])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, items, marks)
        assert [p.name[0] for p in (tmp_path / "out").iterdir()] == ["."]
        (marks / "go").touch()
        result = run(tmp_path, items, marks)
        assert result.decoded == 3
        assert reads(marks) == [f"{n}.npy" for n in ("a", "b", "c", "stop", "stop", "d", "e")]
        whole = prepare_samples("toy", items, {"x": CountingReader(marks)}, ["one", "two"], tmp_path / "whole",
                              key={}, workers=0, progress=False)  # fmt: skip
        assert_same(result.folder, whole.folder)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda partial: truncate_by(piece(partial, 2), 5),
            lambda partial: append(piece(partial, 2), b"half a sample"),
            lambda partial: piece(partial, 0).unlink(),
            lambda partial: piece(partial, 1).write_bytes(b""),
            lambda partial: piece(partial, 1).write_bytes(b"\x00" * 200),  # what a power failure may leave
            lambda partial: piece(partial, 1).write_bytes(piece(partial, 0).read_bytes()),
            lambda partial: np.savez(piece(partial, 1), x=np.zeros(3, np.float32)),
            lambda partial: rename_array(piece(partial, 1)),
            lambda partial: (partial / "samples" / ".00000003.npz.1.tmp").write_bytes(b"PK"),
            lambda partial: (partial / "x.npy").write_bytes(b"half of what was packed"),
            *(lambda partial, at=at: flip(piece(partial, 1), at=at) for at in range(0, 560, 11)),
            *(lambda partial, n=n: truncate_by(piece(partial, 1), n) for n in (1, 100, 300, 500)),
        ],
    )
    def test_in_the_middle_of_writing(self, tmp_path, marks, damage):
        items = make_items(tmp_path, ["a", "b", "c", "stop", "d", "e"])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, items, marks)
        (partial,) = (tmp_path / "out").iterdir()
        assert len(piece(partial, 1).read_bytes()) > 560
        damage(partial)
        (marks / "go").touch()
        result = run(tmp_path, items, marks)
        store = open_store(result.folder, verify=True)
        assert [clip.id for clip in store.samples] == [item.id for item in items]
        np.testing.assert_array_equal(store.arrays["x"], np.arange(6)[:, None].repeat(3, 1))

    def test_between_the_manifest_and_the_last_step(self, tmp_path, marks, monkeypatch):
        items = make_items(tmp_path, ["a", "b"])
        with monkeypatch.context() as patch:
            patch.setattr("bmlr.data.store._build.move_into_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, items, marks)
        assert run(tmp_path, items, marks).decoded == 0
        assert len(reads(marks)) == 2

    @pytest.mark.parametrize(("name", "missing"), [("term", ["term", "c"]), ("term-swallowed", ["c"])])
    def test_by_a_polite_signal(self, tmp_path, marks, name, missing):
        """A sample whose reader swallowed the signal is whole when the preparation stops, and kept."""
        items = make_items(tmp_path, ["a", "b", name, "c"])
        with pytest.raises(ValueError, match=r"was stopped by SIGTERM. What was read is kept: the same call goes on"):
            run(tmp_path, items, marks)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        (marks / "go").touch()
        assert run(tmp_path, items, marks).decoded == len(missing)
        assert reads(marks) == [f"{n}.npy" for n in ("a", "b", name, *missing)]

    def test_by_a_signal_while_libsndfile_asks_for_bytes(self, tmp_path, capfd):
        """It would print the traceback, and take the file for shorter."""
        soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)

        class Stopping(io.FileIO):
            def readinto(self, buffer):
                os.kill(os.getpid(), signal.SIGTERM)
                return super().readinto(buffer)

        with (
            pytest.raises(ValueError, match="was stopped by SIGTERM"),
            exit_on_sigterm(tmp_path) as check,
            Stopping(tmp_path / "a.wav") as source,
        ):
            assert len(soundfile.SoundFile(source).read()) == 8000
            check()
        assert capfd.readouterr().err == ""

    def test_by_a_signal_in_a_finaliser(self, tmp_path, capfd):
        class Stopping:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(ValueError, match="was stopped by SIGTERM"), exit_on_sigterm(tmp_path) as check:
            Stopping()
            check()
        assert capfd.readouterr().err == ""

    def test_a_handler_of_the_program_s_own_stays(self, tmp_path, marks):
        came = []
        before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
        try:
            assert run(tmp_path, make_items(tmp_path, ["a", "term"]), marks).decoded == 2
        finally:
            signal.signal(signal.SIGTERM, before)
        assert came == [1]

    def test_what_a_killed_process_left_behind_is_removed(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "stop", "b"])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, items, marks)
        (partial,) = (tmp_path / "out").iterdir()
        (partial / ".manifest.json.1.tmp").write_text('{"version"')
        (marks / "go").touch()
        folder = run(tmp_path, items, marks).folder
        assert not list(folder.glob(".*"))
        (folder / "samples").mkdir()  # as one that was killed after the last step but one
        (folder / "samples" / "00000000.npz").write_text("")
        (folder / "lock").write_text("")
        assert run(tmp_path, items, marks).decoded == 0
        assert sorted(path.name for path in folder.iterdir()) == [
            "manifest.json", "rejected.csv", "targets.npy", "x.npy", "x_offsets.npy",
        ]  # fmt: skip

    def test_by_killing_the_process(self, tmp_path, marks):
        """SIGKILL in the middle, with two workers; then the same call ends with the same store."""
        items = make_items(tmp_path, [f"slow{i}" for i in range(12)])
        program = (
            "import sys, pathlib\n"
            f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
            "from test_prepare import *\n"
            f"tmp = pathlib.Path({str(tmp_path)!r})\n"
            "if __name__ == '__main__':\n"
            "    items = make_items(tmp, [f'slow{i}' for i in range(12)])\n"
            "    run(tmp, items, tmp / 'marks', workers=1)\n"
        )
        script = tmp_path / "script.py"
        script.write_text(program)
        process = subprocess.Popen([sys.executable, str(script)])  # noqa: S603
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(pieces(tmp_path / "out")) < 3:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert pieces(tmp_path / "out"), "it ended before it was killed"
        time.sleep(1)  # the orphaned worker ends
        done = len(pieces(tmp_path / "out"))
        assert 3 <= done < 12
        before = len(reads(marks))
        result = run(tmp_path, items, marks)
        assert result.decoded == 12 - done
        assert len(reads(marks)) - before == 12 - done
        assert [clip.id for clip in open_store(result.folder, verify=True).samples] == [item.id for item in items]

    def test_two_at_once_are_refused(self, tmp_path, marks):
        fcntl = pytest.importorskip("fcntl")
        items = make_items(tmp_path, ["a", "b", "stop"])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, items, marks)
        with (next((tmp_path / "out").iterdir()) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (next((tmp_path / "out").iterdir()) / "holder").write_text("process 7 on there")
            with pytest.raises(ValueError, match=r"Another process \(process 7 on there\) is preparing"):
                run(tmp_path, items, marks)


class TestWorkers:
    def test_give_the_same_store_in_the_same_order(self, tmp_path, marks):
        items = make_items(tmp_path, [f"{'slow' if i % 5 == 0 else 'fast'}{i}" for i in range(20)])
        items.insert(3, dataclasses.replace(items[0], id="odd", files={"x": tmp_path / "odd.npy"}))
        first = prepare_samples("toy", items, {"x": CountingReader(marks)}, ["one"], tmp_path / "one",
                              key={}, workers=0, progress=False)  # fmt: skip
        second = prepare_samples("toy", items, {"x": CountingReader(marks)}, ["one"], tmp_path / "two",
                               key={}, workers=2, progress=False)  # fmt: skip
        assert_same(first.folder, second.folder)
        assert first.rejected == second.rejected
        assert (first.folder / "x.npy").read_bytes() == (second.folder / "x.npy").read_bytes()

    @pytest.mark.usefixtures("_forked_workers")
    def test_a_crash_rejects_the_clip_alone(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "crash", "b"])
        result = run(tmp_path, items, marks, workers=2, max_rejected=0.4)
        assert [(r.id, r.reason) for r in result.rejected] == [("crash", "the process that read it crashed")]
        assert [clip.id for clip in open_store(result.folder).samples] == ["a", "b"]

    @pytest.mark.parametrize(
        ("name", "reason"), [("killed", "was killed. Is memory short"), ("hang", "took more than")]
    )
    @pytest.mark.usefixtures("_forked_workers")
    def test_a_process_killed_or_hanging_blames_no_clip(self, tmp_path, marks, monkeypatch, name, reason):
        monkeypatch.setattr("bmlr.data.store._workers._MAX_SECONDS", 4.0)
        items = make_items(tmp_path, [name, "a"])
        with pytest.raises(ValueError, match=rf"1 of 2 samples could not be read now, such as {name}: .*{reason}"):
            run(tmp_path, items, marks, workers=1, max_rejected=0.9)
        (marks / "go").touch()
        result = run(tmp_path, items, marks)
        assert (result.decoded, result.rejected) == (1, ())

    def test_that_cannot_start_are_an_error(self, tmp_path, marks):
        make_items(tmp_path, ["a"])
        script = tmp_path / "unguarded.py"
        script.write_text(
            "import sys, pathlib\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from bmlr.data.readers._arrays import ArrayReader\n"
            "from bmlr.data.store._build import prepare_samples\n"
            "from bmlr.data.store._samples import SourceSample\n"
            f"tmp = pathlib.Path({str(tmp_path)!r})\n"
            "samples = [SourceSample('a', 'one', files={'x': tmp / 'a.npy'})]\n"
            "prepare_samples('toy', samples, {'x': ArrayReader()}, ['one'], tmp / 'out', key={}, workers=1,\n"
            "                progress=False)\n"
        )
        result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)  # noqa: S603
        assert result.returncode != 0
        assert "The worker processes cannot start. In a script" in result.stderr


class TestFaultsOfTheMachine:
    @pytest.mark.usefixtures("_forked_workers")
    @pytest.mark.parametrize(("word", "workers"), [*((word, 0) for word in FAULTS), ("denied", 1)])
    def test_are_tried_again_and_never_sealed(self, tmp_path, marks, word, workers):
        items = make_items(tmp_path, ["a", word, "b"])
        with pytest.raises(ValueError, match=rf"1 of 3 samples could not be read now, such as {word}: .*No file is"):
            run(tmp_path, items, marks, workers=workers, max_rejected=1.0)
        assert not list((tmp_path / "out").glob("toy-*"))
        (marks / "go").touch()
        result = run(tmp_path, items, marks, workers=workers)
        assert (result.decoded, result.rejected, len(open_store(result.folder))) == (1, (), 3)

    def test_a_share_that_is_away_ends_the_work_soon(self, tmp_path, marks):
        items = make_items(tmp_path, [f"away{i}" for i in range(40)])
        with pytest.raises(ValueError, match="20 of 40 samples could not be read now"):
            run(tmp_path, items, marks)

    def test_another_process_s_end_in_between_is_no_damage(self, tmp_path, marks, monkeypatch):
        items = make_items(tmp_path, ["a", "b"])
        lock = bmlr.data.store._build.hold_lock

        @contextlib.contextmanager
        def late(partial):
            monkeypatch.setattr("bmlr.data.store._build.hold_lock", lock)
            assert run(tmp_path, items, marks).decoded == 2  # as another process would, meanwhile
            partial.mkdir()
            with lock(partial):
                yield

        monkeypatch.setattr("bmlr.data.store._build.hold_lock", late)
        result = run(tmp_path, items, marks)
        assert result.decoded == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == [result.folder.name]
        assert len(open_store(result.folder, verify=True)) == 2


class TestRejected:
    def test_are_listed_with_their_reasons(self, tmp_path, marks):
        good = make_items(tmp_path, [f"g{i}" for i in range(4)])
        np.save(tmp_path / "shape.npy", np.zeros(4, np.float32))
        np.save(tmp_path / "type.npy", np.zeros(3, np.int32))
        np.save(tmp_path / "nan.npy", np.array([0, np.nan, 0], np.float32))
        np.save(tmp_path / "empty.npy", np.zeros((0,), np.float32))
        (tmp_path / "bad.npy").write_bytes(b"no array, \nsurely")
        odd = ["shape", "type", "nan", "bad", "odd"]
        items = [*good, *(SourceSample(name, "one", files={"x": tmp_path / f"{name}.npy"}) for name in odd)]
        items += [
            SourceSample("label", "ones", files=good[0].files),
            SourceSample("problem", "one", files=good[0].files, problem="it is on no list"),
            SourceSample("nothing", "one"),
        ]
        result = run(tmp_path, items, marks, max_rejected=0.8)
        with (result.folder / "rejected.csv").open(newline="") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        assert list(rows) == [*odd, "label", "problem", "nothing"]
        reasons = {
            "shape": r"x has shape (4,), where (3,) is expected",
            "type": "x has type int32, where float32 is expected",
            "nan": "x holds NaN or infinity",
            "bad": "",
            "odd": "the decoder lost its way",
            "label": "its label 'ones' is no class. Did you mean 'one'?",
            "problem": "it is on no list",
            "nothing": "it has no file of any modality",
        }
        assert all(reason in rows[name]["reason"] and rows[name]["reason"] for name, reason in reasons.items())
        assert rows["shape"]["file"] == str(tmp_path / "shape.npy")
        assert read_rejected(result.folder) == result.rejected
        assert [clip.id for clip in open_store(result.folder).samples] == ["g0", "g1", "g2", "g3"]
        assert sum(name == "label.npy" for name in reads(marks)) == 0

    def test_empty_arrays(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b"])
        np.save(items[1].files["x"], np.zeros((0, 3), np.float32))
        np.save(items[0].files["x"], np.zeros((2, 3), np.float32))
        result = run(tmp_path, items, marks, reader=ArrayReader("sequence"), max_rejected=0.5)
        assert result.rejected == (Rejection("b", str(items[1].files["x"]), "x holds no values (shape (0, 3))"),)

    def test_too_many_are_an_error_that_keeps_what_was_read(self, tmp_path, marks):
        items = make_items(tmp_path, ["a", "b", "c", "odd"])
        with pytest.raises(ValueError, match=r"1 of 4 samples were rejected.*0\.2 .*`max_rejected`.*odd.*lost its way"):
            run(tmp_path, items, marks, max_rejected=0.2)
        partial = next((tmp_path / "out").iterdir())
        assert len(read_rejected(partial)) == 1
        result = run(tmp_path, items, marks, max_rejected=0.25)
        assert result.decoded == 1  # the rejected one was given another try
        assert len(open_store(result.folder)) == 3

    def test_all_rejected_is_an_error_always(self, tmp_path, marks):
        with pytest.raises(ValueError, match="1 of 1 samples were rejected"):
            run(tmp_path, make_items(tmp_path, ["odd"]), marks, max_rejected=1.0)

    def test_a_missing_package_is_no_fault_of_the_clip(self, tmp_path, marks, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        from bmlr.data.readers._video import VideoReader

        path = tmp_path / "x.mp4"
        path.write_bytes(b"x")
        with pytest.raises(ImportError, match="av"):
            run(tmp_path, [SourceSample("a", "one", files={"x": path})], marks, readers={"x": VideoReader()})


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"items": []}, "`samples` should hold at least one"),
            ({"twice": True}, r"unique ids. Found 1 repeated, among them \['a'\]"),
            ({"classes": ["one", "one"]}, "`classes` should hold unique names"),
            ({"readers": {"y": ArrayReader()}}, r"'a' should have files for \['y'\]. Found \['x'\]"),
            ({"readers": {"x/y": ArrayReader()}}, "`modality` should consist of letters"),
            ({"readers": {"x_offsets": ArrayReader()}}, "has a file of that name"),
            ({"max_rejected": 1.5}, "`max_rejected` should lie in"),
            ({"workers": -1}, "`workers`"),
            ({"key": {"x": {1, 2}}}, "`key`"),
        ],
    )
    def test_are_checked(self, tmp_path, change, message):
        items = change.pop("items", make_items(tmp_path, ["a"]))
        if change.pop("twice", False):
            items = items * 2
        arguments = {"readers": {"x": ArrayReader()}, "classes": ["one"], "key": {}, "workers": 0, **change}
        with pytest.raises(ValueError, match=message):
            prepare_samples("toy", items, dest=tmp_path / "out", **arguments)

    def test_an_unwritable_place(self, tmp_path):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(OSError, match="out"):
            run(tmp_path, make_items(tmp_path, ["a"]), tmp_path)

    @pytest.mark.parametrize(
        ("options", "name"),
        [({"workers": -1}, "workers"), ({"size": 4}, "size"), ({"fps": 0.0}, "fps"), ({"seconds": -1.0}, "seconds"),
         ({"dtype": "float46"}, "dtype"), ({"max_rejected": 2.0}, "max_rejected")],
    )  # fmt: skip
    def test_options(self, options, name):
        with pytest.raises(ValueError, match=f"`{name}`"):
            PrepareOptions(**options)

    def test_names_of_data_sets(self, tmp_path):
        with pytest.raises(ValueError, match="Did you mean 'crema-d'"):
            prepare("cremad", tmp_path, tmp_path)

    def test_find_store(self, tmp_path, marks):
        with pytest.raises(FileNotFoundError, match="bmlr prepare toy SOURCE"):
            find_store(tmp_path / "out", "toy")
        items = make_items(tmp_path, ["a", "b"])
        folder = run(tmp_path, items, marks).folder
        assert find_store(tmp_path / "out", "toy") == folder == find_store(folder, "toy")
        run(tmp_path, items, marks, key={"other": 1})
        with pytest.raises(ValueError, match="holds 2. Choose one of"):
            find_store(tmp_path / "out", "toy")

    def test_progress_is_shown_with_an_estimate(self, tmp_path, marks, capsys):
        run(tmp_path, make_items(tmp_path, ["a", "b", "odd"]), marks, progress=True, max_rejected=0.5)
        printed = " ".join(capsys.readouterr().err.split())
        assert "3/3 samples, 1 rejected" in printed


def pieces(dest):
    """Files of the samples decoded so far."""
    return sorted(dest.glob(".*.partial/samples/[0-9]*.npz"))


def piece(partial, index):
    return partial / "samples" / f"{index:08d}.npz"


def rename_array(path):
    """Give the array of a whole file another name."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in content.items():
            archive.writestr(name.replace("x.npy", "y.npy"), part)


def truncate_by(path, number):
    path.write_bytes(path.read_bytes()[:-number])


def append(path, content):
    path.write_bytes(path.read_bytes() + content)


def flip(path, at=-2):
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)
