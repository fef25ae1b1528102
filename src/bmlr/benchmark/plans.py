"""What grids of runs and searches will do and cost, before they begin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from bmlr.benchmark._plan import Cost, Plan, make_plan
from bmlr.benchmark._problem import make_problem
from bmlr.benchmark._study import JOURNAL, Search
from bmlr.benchmark.engines import Engine, LocalEngine
from bmlr.benchmark.specification import MethodSpecification
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.model import MultimodalClassifier
from bmlr.tables import Table

__all__ = ["Cost", "Plan", "make_plan", "plan_search"]


def plan_search(  # noqa: PLR0913
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
) -> Table:
    """What :func:`bmlr.benchmark.tune` would do with these arguments.

    Raises:
        ValueError: As :func:`bmlr.benchmark.tune` does.
        FileNotFoundError: If data is missing.
    """
    problem = make_problem(
        data, methods, spaces, search, seeds=seeds, model=model, optimizer=optimizer, trainer=trainer
    )
    folder = Path(out)
    lines = [*problem.lines(folder / "runs" if runs is None else Path(runs), engine or LocalEngine(), made=0)]
    if (folder / JOURNAL).is_file():
        lines.append(f"{folder} holds a search, which goes on where it was stopped.")
    return dataclasses.replace(problem.table(), notes=lines)
