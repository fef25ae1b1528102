"""Search of parameters on the validation split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bmlr import figures
from bmlr._files import atomic_write_text
from bmlr.benchmark._jobs import Job
from bmlr.benchmark._problem import Problem, make_problem, parameters_text
from bmlr.benchmark._progress import print_line
from bmlr.benchmark._space import OPTIMIZER, Range
from bmlr.benchmark.contents import Contents, FigureFile, write_contents
from bmlr.benchmark.drawing import save_figure
from bmlr.benchmark.engines import Engine, LocalEngine
from bmlr.benchmark.grid import run_grid
from bmlr.benchmark.specification import MethodSpecification
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.figures.style import set_title
from bmlr.model import MultimodalClassifier
from bmlr.runs import DirectoryLock, RunRecord
from bmlr.tables import Cell, Table, mark_best
from bmlr.tasks import MetricForm, metric_form

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
from bmlr.benchmark._study import TRIALS, Search, corners, counted_trials, next_trials, open_study

_MONITOR = "monitor"  # attribute of a study: the metric that its values are of


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """A finished search.

    Attributes:
        trials: A row per trial: method, number, state, parameters, validation score, directories of its runs.
        best: Best parameters of each method, by its text.
        table: The best of each method.
        files: What was written.
    """

    trials: pd.DataFrame
    best: Mapping[str, Mapping[str, Any]]
    table: Table
    files: Sequence[Path]


def tune(  # noqa: PLR0913
    data: MultimodalData,
    methods: Sequence[MethodSpecification | str],
    spaces: Sequence[str],
    search: Search | None = None,
    *,
    seeds: Sequence[int] = (0,),
    model: ModelOptions | Callable[..., MultimodalClassifier] | None = None,
    optimizer: OptimizerOptions | None = None,
    trainer: TrainerOptions | None = None,
    runs: Path | str | None = None,
    out: Path | str = "tuning",
    engine: Engine | None = None,
    say: Callable[[str], None] | None = None,
) -> TuneResult:
    """Search parameters by the validation score, with equal trials for every method.

    A trial is an ordinary run (one per seed) in the store of runs; its value is the validation score of the
    selected epoch, by the metric that selects it, the mean over seeds. The test split decides nothing here. The search
    goes on where it was stopped: trials are kept in a journal of Optuna's in ``out``, the sampler of each is seeded by
    its number, and a trial that was under way is finished first, so that a search that was interrupted ends like one
    that was not.

    Args:
        data: Data set.
        methods: Methods, as :func:`bmlr.benchmark.specification.parse_method` reads them.
        spaces: What is searched, as ``alpha=0.1:10:log,beta=0:1`` or ``BMLR:alpha=0.5|1|2``.
        search: How it is searched.
        seeds: Seeds of the runs of a trial.
        model: Options of the model, or a function that makes a whole one.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        runs: Folder of the runs; None is ``runs`` in ``out``, apart from runs that are results.
        out: Folder of the journal, the tables, the best configurations and the surfaces.
        engine: Where the runs are made; None is one after another on this machine.
        say: Takes a line of text as each run ends; None prints to the error stream.

    Returns:
        The trials and the best of each method.

    Raises:
        ValueError: If a space does not fit, the methods would get different numbers of trials, the folder holds a
            search of something else, or no trial of a method finished.
        RunError: If another process is searching in this folder.
    """
    problem = make_problem(
        data, methods, spaces, search, seeds=seeds, model=model, optimizer=optimizer, trainer=trainer
    )
    folder = Path(out)
    store = folder / "runs" if runs is None else Path(runs)
    engine, say = engine or LocalEngine(), say or print_line
    with DirectoryLock(folder):
        studies = {
            method.text: open_study(folder, method.text, _identity(problem, method)) for method in problem.methods
        }
        made = sum(len(counted_trials(study)) for study in studies.values())
        for line in problem.lines(store, engine, made):
            say(line)
        while batch := next_trials(
            studies, problem.methods, problem.ranges, problem.search, problem.number, problem.defaults()
        ):
            try:
                _run_trials(batch, studies, problem, store, engine, say)
            except KeyboardInterrupt as error:
                made = sum(trial.state.is_finished() for study in studies.values() for trial in counted_trials(study))
                raise KeyboardInterrupt(
                    f"Stopped by Ctrl-C: {made} of {problem.trials} trials are made, those under way have checkpoints. "
                    "The same command goes on from there."
                ) from error
        return _conclude(studies, problem, store, folder)


def _identity(problem: Problem, method: MethodSpecification) -> dict[str, Any]:
    """Settings that a continued search must share with the first."""
    space, search, seeds = problem.ranges[method.text], problem.search, problem.seeds
    config = problem.jobs(method, corners(space)[0])[0].config
    settings = config.settings
    for name in space:
        (settings["optimizer"] if name.startswith(OPTIMIZER) else settings["method"]["init_args"]).pop(
            name.removeprefix(OPTIMIZER), None
        )
    settings.pop("seed")
    return {
        "config": settings,
        "data": config.data_identity,
        "space": {
            name: dataclasses.asdict(values) | {"choices": list(values.choices)} for name, values in space.items()
        },
        "sampler": search.sampler,
        "defaults_first": search.defaults_first,
        "sampler_seed": search.seed,
        "seeds": list(seeds),
    }


def _run_trials(
    batch: Sequence[tuple[MethodSpecification, FrozenTrial]],
    studies: Mapping[str, Study],
    problem: Problem,
    runs: Path,
    engine: Engine,
    say: Callable[[str], None],
) -> None:
    from optuna.trial import TrialState

    jobs = [problem.trial_jobs(method, trial.params, _place(studies[method.text], trial)) for method, trial in batch]
    grid = [job for jobs_of_trial in jobs for job in jobs_of_trial]
    records = iter(run_grid(grid, runs, engine, plan=False, say=None if say is print_line else say))
    for (method, trial), jobs_of_trial in zip(batch, jobs, strict=True):
        study = studies[method.text]
        value = _value([next(records) for _ in jobs_of_trial], study)
        if value is None:
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, value)
        say(f"{method.text}, trial {_place(study, trial)} of {problem.number}: {_outcome(study, value)}")


def _place(study: Study, trial: FrozenTrial) -> int:
    """Number of a trial among those that count, from one."""
    return [counted.number for counted in counted_trials(study)].index(trial.number) + 1


def _outcome(study: Study, value: float | None) -> str:
    finished = [trial for trial in counted_trials(study) if trial.value is not None]
    form = _form(study)
    text = "failed" if value is None else f"validation {form.text(form.goodness(value))}"
    if not finished:
        return text
    best = _best(finished)
    return f"{text}, best so far {form.text(form.goodness(best.value or 0))} by {parameters_text(best.params)}"


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The first of the trials with the largest value."""
    return max(trials, key=lambda trial: (float(trial.value or 0), -trial.number))


def _form(study: Study) -> MetricForm:
    """Metric of a study, whose values are its goodness."""
    return metric_form(study.user_attrs.get(_MONITOR, "accuracy"))


def _value(records: Sequence[RunRecord], study: Study) -> float | None:
    """Mean validation score of a trial, larger for better; None if a run failed."""
    values = []
    for record in records:
        if record.result is None:
            return None
        metric = record.result["monitor"]
        if study.user_attrs.get(_MONITOR) != metric:
            study.set_user_attr(_MONITOR, metric)
        values.append(metric_form(metric).goodness(float(record.result["validation"][metric])))
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if len(defined) == len(values) else None


def _conclude(studies: Mapping[str, Study], problem: Problem, runs: Path, folder: Path) -> TuneResult:
    """Write all trials, the best configuration of each method and the surfaces."""
    rows: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    files: list[Path] = []
    for method in problem.methods:
        trials, form = counted_trials(studies[method.text]), _form(studies[method.text])
        for number, trial in enumerate(trials):
            directories = [str(job.directory(runs)) for job in problem.jobs(method, trial.params)]
            rows.append(
                {"method": method.text, "trial": number, "state": trial.state.name.lower(), **trial.params,
                 f"validation_{form.name}": None if trial.value is None else form.goodness(trial.value),
                 "directories": " ".join(directories)}
            )  # fmt: skip
        finished = [trial for trial in trials if trial.value is not None]
        if not finished:
            raise ValueError(f"No trial of '{method.text}' finished; see failed.json in {rows[-1]['directories']}.")
        winner = _best(finished)
        best[method.text] = dict(winner.params)
        job = problem.jobs(method, winner.params)[0]
        files += _write_best(folder, method, job)
        title = f"{job.config.data.name}: validation {form.title} of {method.text}"
        files += _write_surface(folder, method, problem.ranges[method.text], finished, title, form)
    table = pd.DataFrame(rows)
    atomic_write_text(folder / TRIALS, table.to_csv(index=False))
    shown = _table(table, best, form)
    pictures = [
        FigureFile(file, f"Validation {form.title} over the grid, {file.stem.removeprefix('surface-')}.")
        for file in files
        if file.suffix == ".png"
    ]
    files.append(write_contents(Contents("Search of parameters", [shown, *pictures]), folder))
    return TuneResult(table, best, shown, [folder / TRIALS, *files])


def _write_best(folder: Path, method: MethodSpecification, job: Job) -> list[Path]:
    path = folder / f"best-{file_name(method.text)}.yaml"
    atomic_write_text(path, job.config.as_yaml())
    return [path]


def _write_surface(
    folder: Path,
    method: MethodSpecification,
    space: Mapping[str, Range],
    trials: Sequence[FrozenTrial],
    title: str,
    form: MetricForm,
) -> list[Path]:
    """Validation score over two numeric parameters as CSV and figure.

    The figure needs a grid.
    """
    if len(space) != 2:
        return []
    table = pd.DataFrame([{**trial.params, form.name: form.goodness(trial.value or 0)} for trial in trials])
    path = folder / f"surface-{file_name(method.text)}.csv"
    x, y = space
    for name in space:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    if table[[x, y]].isna().any(axis=None):
        return []
    table = table.sort_values([x, y])
    atomic_write_text(path, table.to_csv(index=False))
    if not all(values.choices for values in space.values()):
        return [path]
    axes = figures.plot_surface(table, x, y, form.name, label=f"validation {form.label}")
    set_title(axes.get_figure(), title)
    return [path, *save_figure(axes.get_figure(), folder, f"surface-{file_name(method.text)}")]


def _table(trials: pd.DataFrame, best: Mapping[str, Mapping[str, Any]], form: MetricForm) -> Table:
    rows = []
    for text, parameters in best.items():
        of_method = trials[trials["method"] == text]
        failed = int((of_method["state"] == "fail").sum())
        scores = form.goodness(1.0) * of_method[f"validation_{form.name}"].astype(float)
        score = form.goodness(float(scores.max()))
        count = f"{len(of_method)} ({failed} failed)" if failed else str(len(of_method))
        rows.append([Cell(text), Cell(parameters_text(parameters)), Cell(form.number(score)), Cell(count)])
    marked = mark_best([row[2] for row in rows], form.goodness)
    return Table(
        ["method", "best parameters", form.head("validation"), "trials"],
        [[*row[:2], cell, row[3]] for row, cell in zip(rows, marked, strict=True)],
        ["Selected on the validation split, hence no estimate of the score on new data."],
    )


def file_name(text: str) -> str:
    """A specification as part of a file's name.

    Example:
        >>> file_name("LFM:alpha=constant@7")
        'LFM-alpha-constant-7'
    """
    return "".join(character if character.isalnum() or character in "._" else "-" for character in text)
