"""Settings of all tests.

Its place makes the modules of this folder (``zoo``, ``oracle``) importable.
"""

import gc
import os
from collections.abc import Generator, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tests' tensors are far too small to be shared out: more threads only wait for each other.
torch.set_num_threads(1)


# A busy machine is no error of the code, nor is a test that runs twice in a process, as under mutmut.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the collector of garbage, and take what was imported out of its sight.

    What is imported is no garbage, and all of torch would be read for it again and again: during the imports, and
    whenever a command fails in the tests' process, up to a second each.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let files be written without waiting for the disk: no test survives a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed the random numbers of every test; none has the run's seed of the one before."""
    torch.manual_seed(0)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
