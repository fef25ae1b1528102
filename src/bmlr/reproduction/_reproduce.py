"""Make the paper's tables and figures from runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bmlr.methods
from bmlr._checks import nearest_name
from bmlr._files import atomic_write_text
from bmlr.benchmark import Search, run_frame, tune
from bmlr.benchmark.contents import Contents, FigureFile, write_contents
from bmlr.benchmark.engines import Engine
from bmlr.benchmark.grid import Job, make_jobs, run_grid
from bmlr.benchmark.plans import make_plan, plan_search
from bmlr.benchmark.specification import parse_method
from bmlr.config import class_path, read_config_entries
from bmlr.data import MultimodalData
from bmlr.reproduction._figures import DrawnFigures, ExperimentRuns, draw_bars, draw_figures
from bmlr.reproduction._paper import EXPERIMENTS, GRID, Experiment, Row
from bmlr.reproduction._results import experiment_table, frame
from bmlr.reproduction._scales import (
    SCALES,
    ReproduceResult,
    Settings,
    check_data,
    data_names,
    digits_note,
    make_all_data,
    method_at,
    scaled_options,
)
from bmlr.tables import Table, write_table


def reproduce(
    names: Sequence[str],
    settings: Settings | None = None,
    *,
    runs: Path | str = "runs",
    out: Path | str = "reproduction",
    engine: Engine | None = None,
    say: Callable[[str], None] | None = None,
) -> ReproduceResult:
    """Make tables and figures of the BMLR paper, and their runs.

    Experiments share runs; a run that is finished is not made again, so another experiment, or the same after an
    interruption, costs what it lacks.

    Args:
        names: ``table1`` to ``table6``, ``fig1``, ``fig3`` to ``fig6``, or ``all``.
        settings: Scale, data, seeds and options.
        runs: Folder of the runs; the trials of fig5 are kept in ``out``.
        out: Folder of the tables and figures.
        engine: Where the runs are made; None is one after another on this machine.
        say: Takes a line of text as each run ends; None prints to the error stream.

    Raises:
        ValueError: If there is no such experiment, or it is about none of the data sets given.
        FileNotFoundError: If data is missing; the message says what makes it.
    """
    settings = settings or Settings()
    experiments, data, jobs = _prepare(names, settings)
    if said := digits_note(experiments, settings):
        (say or _print_line)(said)
    folder, store = Path(out), Path(runs)
    grid = [job for row_jobs in jobs.values() for job in row_jobs]
    records = iter(run_grid(grid, store, engine, say=say) if grid else [])
    row_records = {key: [next(records) for _ in row_jobs] for key, row_jobs in jobs.items()}

    tables: dict[str, Table] = {}
    files: list[Path] = []
    contents: list[Table | FigureFile] = []
    notes: list[str] = []
    for experiment in experiments:
        datasets = {data[text].name: data[text] for text in data_names(experiment, settings)}
        experiment_runs = ExperimentRuns(
            experiment, datasets, {key[1:]: made for key, made in row_records.items() if key[0] == experiment.name}
        )
        if experiment.is_table:
            tables[experiment.name] = table = experiment_table(experiment_runs, settings)
            contents.append(table)
            files += write_table(table, frame(experiment_runs, settings), folder, experiment.name)
            drawings = [draw_bars(experiment_runs, folder)]
        elif experiment.name == "fig5":
            drawings = [_surface(experiment, datasets, settings, folder, engine, say)]
        else:
            drawings = [draw_figures(experiment_runs, name, folder) for name in datasets]
        for drawing in drawings:
            files += drawing.files
            contents += drawing.figures
            notes += drawing.notes
    unique = {record.directory: record for made in row_records.values() for record in made}
    if unique:
        atomic_write_text(folder / "runs.csv", run_frame(unique.values()).to_csv(index=False))
        files.append(folder / "runs.csv")
    names_of_data = ", ".join(dataset.name for dataset in data.values())
    title = f"Tables and figures of the BMLR paper, {settings.scale} scale, on {names_of_data}"
    files.append(write_contents(Contents(title, contents, notes), folder))
    return ReproduceResult(tables, list(unique.values()), files, notes)


def plan_reproduction(
    names: Sequence[str],
    settings: Settings | None = None,
    *,
    runs: Path | str = "runs",
    out: Path | str = "reproduction",
    engine: Engine | None = None,
) -> list[Table]:
    """Tables of the runs that :func:`reproduce` would make with these arguments.

    Raises:
        ValueError: As :func:`reproduce` does.
        FileNotFoundError: If data is missing; the message says what makes it.
    """
    settings = settings or Settings()
    experiments, data, jobs = _prepare(names, settings)
    grid = [job for row_jobs in jobs.values() for job in row_jobs]
    tables = [make_plan(grid, Path(runs), engine).table()] if grid else []
    searched = {
        text for experiment in experiments if experiment.name == "fig5" for text in data_names(experiment, settings)
    }
    tables += [
        plan_search(**_surface_search(dataset, settings, Path(out)), engine=engine)
        for text, dataset in data.items()
        if text in searched
    ]
    if said := digits_note(experiments, settings):
        tables = [dataclasses.replace(table, notes=[said, *table.notes]) for table in tables]
    return tables


def _prepare(
    names: Sequence[str], settings: Settings
) -> tuple[list[Experiment], dict[str, MultimodalData], dict[tuple[str, str, str], list[Job]]]:
    """Experiments, data sets as written, and runs by experiment, row and data set."""
    experiments = _find_experiments(names)
    data = make_all_data(experiments, settings)
    check_data(data.values())
    jobs = {
        (experiment.name, row.label, data[text].name): _jobs(row, data[text], settings)
        for experiment in experiments
        for row in experiment.rows
        for text in data_names(experiment, settings)
    }
    return experiments, data, jobs


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _find_experiments(names: Sequence[str]) -> list[Experiment]:
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise ValueError(
                f"`names` should be among {', '.join(EXPERIMENTS)}, all. Found '{name}'."
                f"{nearest_name(name, EXPERIMENTS)}"
            )
    if not names:
        raise ValueError(f"`names` should be at least one of {', '.join(EXPERIMENTS)}, all. Found none.")
    return [experiment for name, experiment in EXPERIMENTS.items() if name in names or "all" in names]


def _jobs(row: Row, data: MultimodalData, settings: Settings) -> list[Job]:
    model, optimizer, trainer = scaled_options(settings, data)
    method = method_at(SCALES[settings.scale], row.method, trainer.epochs or 1)
    specification = parse_method(method)
    if tuned := _tuned_parameters(specification.name, data, settings):
        parameters = ",".join(f"{key}={value}" for key, value in {**tuned, **specification.parameters}.items())
        method = f"{specification.name}:{parameters}{f'@{specification.epochs}' if specification.epochs else ''}"
    model = dataclasses.replace(model, fusion=row.fusion)
    return make_jobs(data, [method], settings.seeds, model=model, optimizer=optimizer, trainer=trainer)


def _tuned_parameters(method: str, data: MultimodalData, settings: Settings) -> dict[str, Any]:
    """Best parameters of a search for a method.

    Without a search of its own, those of the method it shares parameters with.
    """
    sibling = bmlr.methods.get(method).shares_parameters_with
    of_method: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for folder in settings.tuned:
        files = sorted(folder.glob("best-*.yaml"))
        if not files:
            raise FileNotFoundError(f"There is no best-….yaml in {folder}: it should be the folder of a bmlr tune.")
        for path in files:
            content = read_config_entries(path)
            if content["data"]["class_path"] != class_path(type(data)):
                continue
            name = content["method"]["class_path"].rpartition(".")[2]
            best = {key: value for key, value in content["method"]["init_args"].items() if value is not None}
            if name == method:
                of_method |= best
            elif sibling is not None and name == sibling.__name__:
                shared |= best
    return of_method or shared


def _surface(
    experiment: Experiment,
    data: Mapping[str, MultimodalData],
    settings: Settings,
    folder: Path,
    engine: Engine | None,
    say: Callable[[str], None] | None,
) -> DrawnFigures:
    """Validation accuracy over α and β, with the first of the seeds.

    Its trials stay apart from the runs.
    """
    drawings = DrawnFigures()
    for name, dataset in data.items():
        surface = tune(**_surface_search(dataset, settings, folder), engine=engine, say=say)
        drawings.files += surface.files
        caption = f"{experiment.title} on {name}, seed {settings.seeds[0]}."
        drawings.figures += [FigureFile(file, caption) for file in surface.files if file.suffix == ".png"]
    return drawings


def _surface_search(data: MultimodalData, settings: Settings, folder: Path) -> dict[str, Any]:
    """Arguments of the search of Fig. 5."""
    model, optimizer, trainer = scaled_options(settings, data)
    return {
        "data": data, "methods": ["BMLR"], "spaces": [GRID[settings.scale]], "search": Search(sampler="grid"),
        "seeds": settings.seeds[:1], "model": model, "optimizer": optimizer, "trainer": trainer,
        "out": folder / f"fig5-{data.name}",
    }  # fmt: skip
