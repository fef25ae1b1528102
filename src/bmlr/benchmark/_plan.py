"""What a grid of runs will do and cost, said before it begins."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from bmlr.benchmark._jobs import COST, EPOCHS, Job, with_required
from bmlr.benchmark._progress import run_titles
from bmlr.benchmark._server import Task, borrow_server
from bmlr.benchmark.engines import Engine, LocalEngine
from bmlr.runs import read_run
from bmlr.runs.layout import CONFIG, METRICS
from bmlr.runs.settings import settings_key
from bmlr.tables import Cell, Table, format_count, format_duration, format_size

_PATIENCE = 120.0  # seconds after which nothing is estimated
_COPIES = 5  # a run keeps the weights of two epochs, and in its checkpoint the weights with Adam's two means


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimated cost of a run.

    Attributes:
        seconds: Its time.
        bytes: Size of its files.
    """

    seconds: float
    bytes: float


@dataclasses.dataclass
class Plan:
    """Runs of a grid, and what they will cost.

    Attributes:
        jobs: The runs, each configuration once.
        states: finished, failed, begun or new, by run.
        runs: Folder of the runs.
        engine: Engine that will train them.
        required: Directories of runs that others start from, and that nobody asked for.
    """

    jobs: Sequence[Job]
    states: Sequence[str]
    runs: Path
    engine: Engine
    required: Collection[Path] = ()
    _costs: list[Cost | None] | None = None

    def announce(self, say: Callable[[str], None]) -> None:
        """Say what will be done; what it will cost, once that is measured."""
        say(self.counts())
        if estimate := self.estimate():
            say(estimate)

    def counts(self) -> str:
        """The number of runs in a sentence."""
        counts = {state: self.states.count(state) for state in ("finished", "begun", "failed")}
        before = ", ".join(f"{count} {state} before" for state, count in counts.items() if count)
        first = f", {len(self.required)} of them for others to start from" if self.required else ""
        return f"{format_count(len(self.jobs), 'run')} in {self.runs}{first}{f': {before}' if before else ''}."

    def estimate(self, repeats: float = 1, at_once: int | None = None) -> str:
        """The time and space of the unfinished runs in a sentence; "" where they cannot be measured.

        Args:
            repeats: How often runs of this cost will be made; those that others start from are made once.
            at_once: Runs at a time at most.
        """
        costs = [
            (1 if job.directory(self.runs) in self.required else repeats, cost)
            for job, cost, state in zip(self.jobs, self.costs(), self.states, strict=True)
            if state != "finished" and cost
        ]
        if not costs or not isinstance(self.engine, LocalEngine):
            return ""
        at_once = max(1, min(self.engine.processes, at_once or len(costs)))
        seconds = sum(times * cost.seconds for times, cost in costs) / at_once
        size = sum(times * cost.bytes for times, cost in costs)
        together = f", {at_once} at a time" if at_once > 1 else ""
        return (
            f"About {format_duration(seconds)}{together}, and {format_size(size)} on disk, as a few steps on this "
            "machine tell."
        )

    def costs(self) -> list[Cost | None]:
        """Estimated cost of each run; None for finished ones and where nothing could be measured."""
        if self._costs is None:
            self._costs = _measure(self)
        return self._costs

    def table(self) -> Table:
        """The runs, with their states and estimated costs."""
        rows = [
            [Cell(title), Cell(state), Cell(str(job.config.trainer.epochs)),
             Cell("–" if cost is None else format_duration(cost.seconds)),
             Cell("–" if cost is None else format_size(cost.bytes)),
             Cell(str(job.directory(self.runs)))]
            for job, title, state, cost in zip(self.jobs, run_titles(self.jobs), self.states, self.costs(), strict=True)
        ]  # fmt: skip
        notes = [text for text in (self.counts(), self.estimate()) if text]
        return Table(["run", "state", "epochs", "time", "size", "folder"], rows, notes)


def make_plan(jobs: Sequence[Job], runs: Path, engine: Engine | None = None) -> Plan:
    """What a grid of jobs will do.

    Args:
        jobs: The runs.
        runs: Folder of the runs.
        engine: Engine that will train them; None trains one after another on this machine.

    Raises:
        ValueError: If a file of a run is damaged; the message names it.
        FileNotFoundError: If data of an unfinished run is missing.
    """
    prepare_data(job for job in jobs if _state(job.directory(runs)) != "finished")
    every = with_required(jobs, runs)
    asked = {job.directory(runs) for job in jobs}
    required = {job.directory(runs) for job in every} - asked
    states = [_state(job.directory(runs)) for job in every]
    return Plan(every, states, runs, engine or LocalEngine(), required)


def prepare_data(jobs: Iterable[Job]) -> None:
    """Prepare the data of all jobs.

    Raises:
        FileNotFoundError: If some is missing.
    """
    for job in {id(job.config.data): job for job in jobs}.values():
        job.config.data.prepare()


def task_of(job: Job, directory: Path) -> Task:
    """The task of a job, with what its process needs to find the user's modules."""
    modules = job.config.user_modules
    # A run's process has to find the user's modules where this one found them.
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()] if modules else []
    return Task(directory.resolve(), tuple(modules), tuple(paths))


def _state(directory: Path) -> str:
    state = read_run(directory).state
    if state == "unfinished":
        return "begun" if (directory / METRICS).is_file() else "new"
    return state


def _measure(plan: Plan) -> list[Cost | None]:
    """Cost of each unfinished run, by a few steps of some of them."""
    todo = [job for job, state in zip(plan.jobs, plan.states, strict=True) if state != "finished"]
    groups: dict[str, list[Job]] = {}
    for job in todo:
        groups.setdefault(_key(job), []).append(job)
    if not todo or not isinstance(plan.engine, LocalEngine):
        return [None] * len(plan.jobs)
    epochs = sum(job.config.trainer.epochs or 0 for job in todo)
    measured = _measure_steps([members[0] for members in groups.values()], epochs, plan.engine)
    by_key = dict(zip(groups, measured, strict=True))
    found = [cost for cost in measured if cost is not None]
    if not found:
        return [None] * len(plan.jobs)
    mean = {name: sum(cost[name] for cost in found) / len(found) for name in found[0]}

    def cost_of(job: Job) -> Cost:
        cost = by_key[_key(job)] or mean
        epochs = (job.config.trainer.epochs or 0) if job.config.method.trains else 0
        return Cost(cost["epoch_seconds"] * epochs, _COPIES * cost["weights"])

    return [None if state == "finished" else cost_of(job) for job, state in zip(plan.jobs, plan.states, strict=True)]


def _measure_steps(jobs: Sequence[Job], epochs: int, engine: LocalEngine) -> list[dict[str, float] | None]:
    """Seconds of an epoch and bytes of the weights, by job; None where there was no time, or they fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / EPOCHS).write_text(str(epochs))
        tasks = [task_of(job, folder) for job in jobs]
        for number, job in enumerate(jobs):
            (folder / str(number)).mkdir()
            (folder / str(number) / CONFIG).write_text(job.config.as_yaml(), encoding="utf-8")
        modules, paths = (
            tuple(dict.fromkeys(entry for task in tasks for entry in getattr(task, kind)))
            for kind in ("modules", "paths")
        )
        with borrow_server() as server:
            server.start(Task(folder, modules, paths, measure=True), engine.environment())
            server.wait(_PATIENCE)
        files = [folder / str(number) / COST for number in range(len(jobs))]
        return [json.loads(file.read_text()) if file.is_file() else None for file in files]


def _key(job: Job) -> str:
    """Settings that the cost of an epoch depends on."""
    content: dict[str, Any] = job.config.as_dict()
    content.pop("seed")
    return settings_key(content)
