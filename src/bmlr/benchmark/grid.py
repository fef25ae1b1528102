"""Grids of runs that can be interrupted at any time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmlr._files import atomic_write_text
from bmlr.benchmark._jobs import BUSY, FAILED, STOPPED, Job, with_required
from bmlr.benchmark._plan import make_plan, prepare_data, task_of
from bmlr.benchmark._progress import Progress
from bmlr.benchmark._server import Task
from bmlr.benchmark._space import with_rates, with_values
from bmlr.benchmark.engines import LOST, Engine, LocalEngine
from bmlr.benchmark.specification import MethodSpecification, parse_method
from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, as_options, fill_defaults
from bmlr.data import MultimodalData
from bmlr.model import MultimodalClassifier
from bmlr.runs import DirectoryLock, RunRecord, read_run, write_failure
from bmlr.runs.layout import CONFIG, FAILURE, RESULT
from bmlr.tables import format_count, format_duration
from bmlr.tasks import metric_form
from bmlr.training import failure_text

__all__ = ["Job", "make_jobs", "run_grid"]

_POLL_SECONDS = 2.0  # between looks at runs of another process


def make_jobs(
    data: MultimodalData,
    methods: Sequence[MethodSpecification | str],
    seeds: Sequence[int],
    *,
    model: ModelOptions | Callable[..., MultimodalClassifier] | None = None,
    optimizer: OptimizerOptions | None = None,
    trainer: TrainerOptions | None = None,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Job]:
    """Make a job for every method and seed.

    All have the same options, except the epochs of a method that names its own, and what was searched.

    Args:
        data: Data set.
        methods: Methods, as :func:`bmlr.benchmark.specification.parse_method` reads them.
        seeds: Seeds.
        model: Options of the model, or a function that makes a whole one.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        tuned: Values found by a search, by the text of the method, as ``best`` of :func:`bmlr.benchmark.tune` holds
            them. Labels do not show them.

    Raises:
        ValueError: If there is no method or seed, one is named twice, or a method does not take a parameter.

    Example:
        >>> import bmlr.data
        >>> jobs = make_jobs(bmlr.data.create("digits"), ["Joint", "ReconBoost:t1=1,t2=1@7"], [0, 1])
        >>> [(job.label, job.config.seed, job.config.trainer.epochs) for job in jobs][:3]
        [('Joint', 0, 25), ('ReconBoost:t1=1,t2=1@7', 0, 7), ('Joint', 1, 25)]
    """
    specifications = [parse_method(method) if isinstance(method, str) else method for method in methods]
    for argument, values in (("methods", [method.text for method in specifications]), ("seeds", list(map(str, seeds)))):
        if not values:
            raise ValueError(f"`{argument}` should name at least one. Found none.")
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"`{argument}` should name each once. Found {repeated[0]} twice.")
    options, optimizer, trainer = fill_defaults(
        data, as_options(model), optimizer or OptimizerOptions(), trainer or TrainerOptions()
    )
    jobs = []
    for seed in seeds:
        for method in specifications:
            searched = (tuned or {}).get(method.text, {})
            length = trainer if method.epochs is None else dataclasses.replace(trainer, epochs=method.epochs)
            made, rates = with_values(method, searched).make(), with_rates(optimizer, searched)
            jobs.append(Job(method.text, RunConfig(data, made, options, rates, length, seed)))
    return jobs


def run_grid(
    jobs: Iterable[Job],
    runs: Path,
    engine: Engine | None = None,
    *,
    plan: bool = True,
    say: Callable[[str], None] | None = None,
) -> list[RunRecord]:
    """Train the unfinished runs of a grid.

    Finished runs are reused, unfinished ones resume, failed ones are tried again. Runs that others start from
    (:meth:`bmlr.Method.required_runs`) are made first, and once. A run that fails is recorded in its directory and
    stops no others than those that start from it. Runs of another process are waited for. The grid has no state of its
    own: after an interruption, the same call continues from the directories of the runs.

    Args:
        jobs: The runs; jobs of the same configuration are trained once.
        runs: Folder of the runs.
        engine: Engine that trains them; None trains one after another on this machine.
        plan: Say first how many runs there are, and how long they will take.
        say: Called with each line of text, those of progress left out; None prints to the error stream.

    Returns:
        The runs, finished or failed, in the order of the jobs.

    Raises:
        FileNotFoundError: If data of an unfinished run is missing.
        ValueError: If a file of a run is damaged; the message names it.
        PermissionError: If the folder cannot be written.
        KeyboardInterrupt: If Ctrl-C stopped the grid; the message says what is kept.
    """
    jobs = list(jobs)
    engine = engine or LocalEngine()
    prepare_data(job for job in jobs if read_run(job.directory(runs)).result is None)
    distinct = with_required(jobs, runs)
    waiting = [job for job in distinct if read_run(job.directory(runs)).result is None]
    progress = Progress(distinct, runs, say)
    if plan:
        make_plan(distinct, runs, engine).announce(progress.say)
    for job in waiting:
        _write_config(job, runs)
    announced = False
    try:
        with progress:
            while waiting:
                unmade = {job.directory(runs) for job in waiting}
                ready = [job for job in waiting if unmade.isdisjoint(entry.directory(runs) for entry in job.required)]
                for job in [job for job in ready if _end_without_required(job, runs, progress)]:
                    waiting.remove(job)
                    ready.remove(job)
                free = [job for job in ready if not DirectoryLock(job.directory(runs)).held_elsewhere()]
                if ready and not free and not announced:
                    progress.say(f"Waiting for {format_count(len(ready), 'run')} that another process is making.")
                    announced = True
                for ended in _execute(free, runs, engine):
                    if ended is None:
                        progress.show()
                    else:
                        progress.end(*ended)
                        waiting.remove(ended[0])
                        ready.remove(ended[0])
                if ready:  # of another process
                    time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_kept_text(distinct, runs)) from error
    return [read_run(job.directory(runs), job.label) for job in jobs]


def _end_without_required(job: Job, runs: Path, progress: Progress) -> bool:
    """End a job whose required runs have ended without a result; whether there is one."""
    for required in job.required:
        record = read_run(required.directory(runs))
        if record.result is not None:
            continue
        if record.failure is None:
            progress.end(job, f"was not started, since {required.label} was stopped; the same command continues both")
            return True
        method, needed = job.config.method, required.config.method
        reason = failure_text(method, needed, required.directory(runs), str(record.failure.get("error", "")))
        write_failure(job.directory(runs), reason)
        progress.end(job, f"failed: {reason}")
        return True
    return False


def _kept_text(jobs: Sequence[Job], runs: Path) -> str:
    finished = sum((job.directory(runs) / RESULT).is_file() for job in jobs)
    return (
        f"Stopped by Ctrl-C: {finished} of {len(jobs)} runs in {runs} are finished, those under way have checkpoints. "
        "The same command goes on from there."
    )


def _execute(jobs: Sequence[Job], runs: Path, engine: Engine) -> Iterator[tuple[Job, str] | None]:
    """Run the jobs; yield each with its outcome, and None in between.

    Jobs locked by another process are skipped.
    """
    tasks: dict[Task, Job] = {}
    for job in jobs:
        if read_run(job.directory(runs)).result is not None:
            yield job, "was finished by another process"
        else:
            tasks[task_of(job, job.directory(runs))] = job
    for ended in engine.execute(list(tasks)) if tasks else ():
        if ended is None:
            yield None
        elif ended[1] != BUSY:
            yield tasks[ended[0]], _outcome(*ended)


def _outcome(task: Task, code: int) -> str:
    """State of a run whose process has ended, in words.

    A failure that the process could not record is recorded here.
    """
    record = read_run(task.directory)
    if record.result is not None:
        metric = record.result["monitor"]
        score = metric_form(metric).text(record.result["validation"][metric])
        return f"finished in {format_duration(record.result['seconds'])}, validation {score}"
    if code == STOPPED:
        return "was stopped from outside; the same command continues it"
    if record.failure is None or code != FAILED:
        write_failure(task.directory, _exit_reason(code))
        record = read_run(task.directory)
    return f"failed: {(record.failure or {}).get('error', '')} (see {task.directory / FAILURE})"


def _exit_reason(code: int) -> str:
    if code == LOST:
        return "The machine or process of the run was lost more often than Ray may try again."
    if code < 0:
        import signal

        return f"The run's process was ended by {signal.Signals(-code).name}."
    return f"The run's process ended with status {code} and no result."


def _write_config(job: Job, runs: Path) -> None:
    directory = job.directory(runs)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / CONFIG).is_file():
            atomic_write_text(directory / CONFIG, job.config.as_yaml())
    except OSError as error:
        raise PermissionError(f"The folder of runs {runs} cannot be written: {error.strerror or error}.") from error
