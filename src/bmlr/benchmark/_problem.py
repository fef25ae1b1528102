"""What a search is about: methods, ranges, trials, and their runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmlr.benchmark._jobs import Job
from bmlr.benchmark._plan import make_plan
from bmlr.benchmark._space import OPTIMIZER, Range, grid_points, parse_spaces
from bmlr.benchmark._study import Search, corners
from bmlr.benchmark.engines import Engine
from bmlr.benchmark.grid import make_jobs
from bmlr.benchmark.specification import MethodSpecification, parse_method
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.model import MultimodalClassifier
from bmlr.runs.settings import text_of
from bmlr.tables import Cell, Table, format_count


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        data: Data set.
        methods: The methods.
        ranges: Ranges of the parameters, by the text of the method.
        search: How it is searched.
        number: Trials of every method.
        seeds: Seeds of the runs of a trial.
        model: Options of the model, or a function that makes a whole one.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
    """

    data: MultimodalData
    methods: Sequence[MethodSpecification]
    ranges: Mapping[str, Mapping[str, Range]]
    search: Search
    number: int
    seeds: Sequence[int]
    model: ModelOptions | Callable[..., MultimodalClassifier] | None
    optimizer: OptimizerOptions | None
    trainer: TrainerOptions | None

    @property
    def trials(self) -> int:
        """Trials of all methods."""
        return self.number * len(self.methods)

    def jobs(self, method: MethodSpecification, values: Mapping[str, Any]) -> list[Job]:
        """The runs of a trial."""
        return make_jobs(
            self.data,
            [method],
            self.seeds,
            model=self.model,
            optimizer=self.optimizer,
            trainer=self.trainer,
            tuned={method.text: values},
        )

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Default values of what is searched, by the text of the method; empty unless they come first.

        Raises:
            ValueError: If a default is outside its range.
        """
        return {method.text: self._defaults(method) for method in self.methods if self.search.defaults_first}

    def _defaults(self, method: MethodSpecification) -> dict[str, Any]:
        config = self.jobs(method, {})[0].config
        values = {}
        for name, allowed in self.ranges[method.text].items():
            known = vars(config.optimizer) if name.startswith(OPTIMIZER) else config.method.hparams
            default = known[name.removeprefix(OPTIMIZER)]
            values[name] = text_of(default) if allowed.choices else default
            if not allowed.holds(values[name]):
                raise ValueError(
                    f"Space '{allowed}' of '{method.text}' should hold the default, {text_of(default)}, which is the "
                    "first trial."
                )
        return values

    def trial_jobs(self, method: MethodSpecification, values: Mapping[str, Any], place: int) -> list[Job]:
        """The runs of a trial, named by its place."""
        title = f"[{place}/{self.number}] {method.text} with {parameters_text(values)}"
        seeds = [f" seed {job_seed}" if len(self.seeds) > 1 else "" for job_seed in self.seeds]
        return [
            dataclasses.replace(job, title=title + seed)
            for job, seed in zip(self.jobs(method, values), seeds, strict=True)
        ]

    def lines(self, runs: Path, engine: Engine, made: int) -> Iterator[str]:
        """What the search will do, in sentences.

        Args:
            runs: Folder of the runs.
            engine: Where the runs are made.
            made: Trials that were made before.
        """
        methods = f"each of {len(self.methods)} methods" if len(self.methods) > 1 else self.methods[0].text
        seeds = f", each with {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        before = f": {made} made before" if made else ""
        yield f"{format_count(self.number, 'trial')} for {methods}{seeds}, in {runs}{before}."
        at_once = self.search.parallel * len(self.methods) * len(self.seeds)
        processes = getattr(engine, "processes", None) or 1
        if processes > at_once:
            parallel = -(-processes // (len(self.methods) * len(self.seeds)))
            yield (
                f"{processes} processes, but only {format_count(at_once, 'run')} at a time: --parallel "
                f"{parallel} chooses as many trials of a method before the first is known, and is another search."
            )
        jobs = [job for method in self.methods for job in self.jobs(method, corners(self.ranges[method.text])[0])]
        remaining = (self.trials - made) / len(self.methods)
        if remaining > 0 and (estimate := make_plan(jobs, runs, engine).estimate(remaining, at_once)):
            yield estimate

    def table(self) -> Table:
        """The methods, with their trials and ranges."""
        rows = []
        for method in self.methods:
            ranges = self.ranges[method.text].values()
            epochs = self.jobs(method, corners(self.ranges[method.text])[0])[0].config.trainer.epochs
            cells = (method.text, ", ".join(map(str, ranges)), self.number, self.number * len(self.seeds), epochs)
            rows.append([Cell(str(cell)) for cell in cells])
        return Table(["method", "ranges", "trials", "runs", "epochs"], rows)


def make_problem(
    data: MultimodalData,
    methods: Sequence[MethodSpecification | str],
    spaces: Sequence[str],
    search: Search | None,
    *,
    seeds: Sequence[int],
    model: ModelOptions | Callable[..., MultimodalClassifier] | None,
    optimizer: OptimizerOptions | None,
    trainer: TrainerOptions | None,
) -> Problem:
    """Check what is to be searched, with the arguments of :func:`bmlr.benchmark.tune`.

    Values out of a parameter's range are told here, before the first run.
    """
    search = search or Search()
    specifications = [parse_method(method) if isinstance(method, str) else method for method in methods]
    ranges = parse_spaces(spaces, specifications)
    texts = [method.text for method in specifications]
    if repeated := [text for text in texts if texts.count(text) > 1]:
        raise ValueError(f"`methods` should name each once. Found {repeated[0]} twice.")
    problem = Problem(
        data, specifications, ranges, search, _number_of_trials(search, ranges), seeds, model, optimizer, trainer
    )
    for method in specifications:
        for values in corners(ranges[method.text]):
            problem.jobs(method, values)
    problem.defaults()
    return problem


def parameters_text(values: Mapping[str, Any]) -> str:
    """Parameters with four digits.

    Example:
        >>> parameters_text({"alpha": 0.123456, "mode": "ba"})
        'alpha=0.1235, mode=ba'
    """
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _number_of_trials(search: Search, ranges: Mapping[str, Mapping[str, Range]]) -> int:
    """Trials of every method."""
    if search.sampler == "tpe":
        return search.trials or 20
    sizes = {text: len(grid_points(space)) for text, space in ranges.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} for {text}" for text, size in sizes.items())
        raise ValueError(f"All methods should get the same number of trials. The grids have {listed}.")
    size = next(iter(sizes.values()))
    if search.trials not in {None, size}:
        raise ValueError(
            f"Parameter `trials` should be left out or the size of the grid, {size}. Found {search.trials}."
        )
    return size
