import signal
import subprocess
import sys

import pytest

from bmlr.runs import DirectoryLock, RunError

HOLD = """
import sys, time
from bmlr.runs import DirectoryLock
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
        with pytest.raises(RunError, match=rf"in use by process {process.pid} on \S+, since "), DirectoryLock(tmp_path):
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
    with pytest.warns(UserWarning, match="flock not supported"):
        assert DirectoryLock(tmp_path).acquire()
