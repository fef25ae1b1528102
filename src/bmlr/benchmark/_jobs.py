"""Jobs: runs to be trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from bmlr.benchmark.specification import method_text
from bmlr.config import RunConfig
from bmlr.runs.layout import RESULT

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

    @functools.cached_property
    def required(self) -> tuple[Job, ...]:
        """The runs it starts from; the data must be prepared."""
        return tuple(Job(method_text(config.method), config) for config in self.config.required.values())


def with_required(jobs: Iterable[Job], runs: Path) -> list[Job]:
    """Jobs and the runs that unfinished ones start from, each configuration once and behind those it needs.

    The data of unfinished jobs must be prepared.
    """
    listed = {job.directory(runs): job for job in jobs}
    every: dict[Path, Job] = {}
    for directory, job in listed.items():
        for entry in () if (directory / RESULT).is_file() else job.required:
            every.setdefault(entry.directory(runs), listed.get(entry.directory(runs), entry))
        every.setdefault(directory, job)
    return list(every.values())
