"""Processors of this machine."""

from __future__ import annotations

import os


def count_processors() -> int:
    """Number of processors this process may use, which a container or scheduler may restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
