"""Jobs: runs to be trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bmlr.config import RunConfig

#: Exit statuses of a run's process: finished, failed and recorded, locked by another process, stopped from outside.
DONE, FAILED, BUSY, STOPPED = 0, 3, 75, 76
#: Files of a measurement: cost of a configuration, and epochs of all runs.
COST, EPOCHS = "cost.json", "epochs"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be trained.

    Attributes:
        label: Name of the run's method in a table: its specification.
        config: Its resolved configuration, which names its directory.
        title: Name in lines of progress; "" for place, label and seed.
    """

    label: str
    config: RunConfig
    title: str = ""

    def directory(self, runs: Path) -> Path:
        """Directory of the run in a folder of runs."""
        return runs / self.config.name
