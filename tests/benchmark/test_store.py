import json
import signal
import subprocess
import sys

import pytest
from inline import CPU, SMALL, InlineEngine, quiet

from bmlr.benchmark import make_jobs, run_grid
from bmlr.runs import DirectoryLock, RunError, read_record, read_store, write_failure
from bmlr.runs._lock import exclusive
from toy import Toy


def one_run(folder):
    return run_grid(make_jobs(Toy(), ["Joint"], [0], trainer=CPU, model=SMALL), folder, InlineEngine(), say=quiet)[0]


def test_states_of_a_run(tmp_path):
    assert read_record(tmp_path / "none").state == "new"
    record = one_run(tmp_path)
    assert record.state == "finished"
    (record.directory / "result.json").unlink()
    assert read_record(record.directory).state == "interrupted"
    write_failure(record.directory, ValueError("broken"))
    assert read_record(record.directory).state == "failed"


def test_a_failure_tells_its_traceback_its_log_and_the_configuration(tmp_path):
    record = one_run(tmp_path)
    (record.directory / "log.txt").write_text("\n".join(map(str, range(100))))
    try:
        raise KeyError("missing")
    except KeyError as error:
        write_failure(record.directory, error)
    content = json.loads((record.directory / "failed.json").read_text())
    assert content["error"] == "KeyError: 'missing'"
    assert "test_store.py" in content["traceback"]
    assert content["log"] == [str(number) for number in range(60, 100)]
    assert content["config"]["method"]["class_path"] == "bmlr.methods.Joint"
    write_failure(record.directory, "killed")
    assert json.loads((record.directory / "failed.json").read_text())["error"] == "killed"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("result.json", lambda text: text[: len(text) // 2], r"result.json is not a JSON file.*Remove it"),
        ("result.json", lambda text: text.replace('"seed": 0', '"seed": 1'), r"result.json does not fit its checksum"),
        ("config.yaml", lambda text: text[: text.index("trainer:")], r"config.yaml is cut off"),
        ("config.yaml", lambda text: "a: [", r"config.yaml is not a YAML file"),
        ("config.yaml", lambda text: None, r"holds a result.json but no config.yaml"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, change, message):
    path = one_run(tmp_path).directory / name
    changed = change(path.read_text())
    path.unlink() if changed is None else path.write_text(changed)
    with pytest.raises(ValueError, match=message):
        read_record(path.parent)


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder of runs .*nowhere"):
        read_store([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"There is no run in .*: no folder in it holds a config.yaml"):
        read_store([tmp_path])
    record = one_run(tmp_path)
    assert [found.directory for found in read_store([tmp_path])] == [record.directory]
    assert len(read_store([tmp_path, record.directory])) == 1  # the same run, named twice


HOLD = """
import sys, time
from bmlr.runs._lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
print(lock.acquire(), flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout.readline().strip() == "True"
        lock = DirectoryLock(tmp_path)
        assert lock.held_elsewhere()
        assert not lock.acquire()
        with pytest.raises(RunError, match=rf"is in use by another process \({process.pid}\)"), exclusive(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock").exists()  # stale, and of no consequence
        assert not lock.held_elsewhere()
        assert lock.acquire()
        assert lock.acquire()  # again by the same object
        lock.release()


def test_a_lock_is_not_shared_with_programs_that_are_started(tmp_path):
    lock = DirectoryLock(tmp_path)
    assert lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    lock.release()
    assert DirectoryLock(tmp_path).acquire()
    child.kill()
    child.wait()


def test_without_file_locks_a_warning_is_given(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no file locks"):
        assert DirectoryLock(tmp_path).acquire()
