"""Settings of all tests.

Its place makes the modules of this folder (``zoo``, ``oracle``) importable.
"""

import gc

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


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the collector's sight.

    A command that fails in the tests' process runs the collector, which would read all of torch: up to a second each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed the random numbers of every test; none has the run's seed of the one before."""
    torch.manual_seed(0)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
