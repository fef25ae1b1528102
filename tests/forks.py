"""Processes that are forked from one that has imported what they need, in place of an interpreter for each.

An interpreter takes seconds of a processor to import torch and Lightning, a fork takes none.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
from torch.multiprocessing.spawn import start_processes

#: What the process that is forked imports. Nothing here starts a thread, which a fork would lose.
_MODULES = ["bmlr.training", "bmlr.data", "hypothesis", "pytest"]


def fork_context() -> ForkServerContext:
    """The context of :mod:`multiprocessing` for such processes; the first call starts the one that is forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    with pytest.MonkeyPatch.context() as patch:  # it is not told of this process's path before it imports
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


def run_in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in two such processes; an error in one is raised here."""
    fork_context()
    start_processes(function, arguments, nprocs=2, start_method="forkserver")
