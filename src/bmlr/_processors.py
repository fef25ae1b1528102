"""Processors of this machine."""

from __future__ import annotations

import os


def count_processors() -> int:
    """Number of processors this process may use.

    A container or a scheduler may allow fewer than the machine has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
