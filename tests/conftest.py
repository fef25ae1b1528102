"""Settings of all tests; being here also makes the modules of this folder (``zoo``, ``oracle``) importable."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers for every test, whatever ran before it."""
    torch.manual_seed(0)
