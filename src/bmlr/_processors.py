"""Processors of this machine and threads of a computation."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Variable of a run's share of the processors.
SHARE = "BMLR_PROCESSORS"
_CGROUPS = Path("/sys/fs/cgroup")


def count_processors() -> int:
    """Number of processors this process may use.

    A container or a scheduler may allow fewer than the machine has, by affinity or by a quota of their time, and so
    may a grid that makes several runs at a time, by the variable ``BMLR_PROCESSORS``.
    """
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (share := os.environ.get(SHARE, "")).isdecimal():
        number = max(1, min(number, int(share)))
    quota = _read_quota()
    return number if quota is None else max(1, min(number, math.ceil(quota)))


def _read_quota() -> float | None:
    """Processors' worth of time that the control group allows; None without a limit."""
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((_CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
