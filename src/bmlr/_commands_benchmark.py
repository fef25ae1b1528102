"""Commands that make and compare many runs: compare, tune, reproduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from bmlr.benchmark._compare import CompareResult, compare, compare_store
from bmlr.benchmark._engines import make_engine
from bmlr.benchmark._study import Search
from bmlr.benchmark._tune import TuneResult, tune
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.reproduction._reproduce import reproduce
from bmlr.reproduction._scales import ReproduceResult, Settings
from bmlr.runs import RunError, RunRecord


def compare_command(  # noqa: PLR0913  (every parameter is an option)
    data: MultimodalData | None = None,
    model: ModelOptions = ModelOptions(),  # noqa: B008  (the parser reads defaults from the signature)
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    *,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    runs: Path = Path("runs"),
    baseline: str | None = None,
    out: Path | None = None,
    force: bool = False,
    **engine: Any,
) -> CompareResult:
    """Train methods with several seeds and compare them; without --data and --methods, compare the runs there are.

    Args:
        data: Data set, by name (see its parameters with bmlr train --data.help NAME).
        model: The model.
        optimizer: Optimiser and learning-rate schedule.
        trainer: How long and on what to train.
        methods: Names; with parameters as in LFM:mode=bb, with epochs of their own as in ReconBoost:t1=1,t2=1@7.
        seeds: Seeds; 0 1 2 if left out.
        runs: Folder of the runs. Finished ones are kept, interrupted ones resumed, failed ones tried again.
        baseline: Method the differences are to.
        out: Folder of the tables and figures.
        force: Compare runs of different data, protocol or budget too.
        **engine: Options of :func:`bmlr.benchmark.make_engine`.
    """
    chosen = make_engine(**engine)
    if data is None and not methods:
        return compare_store([runs], baseline=baseline, out=out, force=force)
    if data is None or not methods:
        raise ValueError("Options --data and --methods belong together; without both, the runs in --runs are compared.")
    return compare(
        data, methods, [0, 1, 2] if seeds is None else seeds, model=model, optimizer=optimizer, trainer=trainer,
        runs=runs, engine=chosen, baseline=baseline, out=out, force=force,
    )  # fmt: skip


def _show_compare(result: CompareResult) -> None:
    print(result.table.markdown())
    for path in result.files:
        print(path)
    _tell_failures(result.records)


def tune_command(  # noqa: PLR0913
    data: MultimodalData,
    model: ModelOptions = ModelOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    *,
    methods: list[str] | None = None,
    space: list[str] | None = None,
    trials: int | None = None,
    sampler: Literal["tpe", "grid"] = "tpe",
    sampler_seed: int = 0,
    parallel: int = 1,
    seeds: list[int] | None = None,
    runs: Path | None = None,
    out: Path = Path("tuning"),
    **engine: Any,
) -> TuneResult:
    """Search parameters of methods on the validation split, with as many trials for every method.

    Args:
        data: Data set, by name (see its parameters with bmlr train --data.help NAME).
        model: The model.
        optimizer: Optimiser and learning-rate schedule.
        trainer: How long and on what to train.
        methods: Methods, with the parameters that are not searched as in LFM:mode=bb.
        space: What is searched, as alpha=0.1:10:log,beta=0:1 or BMLR:alpha=0.5|1|2.
        trials: Trials of every method; the size of the grid, or 20, if left out.
        sampler: How it is searched: tpe or grid.
        sampler_seed: Seed of the search.
        parallel: Trials of a method that are chosen before the first of them is known.
        seeds: Seeds of the runs of a trial; 0 if left out.
        runs: Folder of the runs; runs in the folder of --out if left out, apart from runs that are results.
        out: Folder of the journal, the tables, the best configurations (for bmlr train --config) and the surfaces.
        **engine: Options of :func:`bmlr.benchmark.make_engine`.
    """
    chosen = make_engine(**engine)
    if not methods or not space:
        raise ValueError("Options --methods and --space should name at least one each.")
    search = Search(trials, sampler, sampler_seed, parallel)
    return tune(
        data, methods, space, search, seeds=seeds or [0], model=model, optimizer=optimizer, trainer=trainer,
        runs=runs, out=out, engine=chosen,
    )  # fmt: skip


def _show_tune(result: TuneResult) -> None:
    print(result.table.markdown())
    for path in result.files:
        print(path)


def reproduce_command(  # noqa: PLR0913
    model: ModelOptions = ModelOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    *,
    names: list[str] | None = None,
    scale: Literal["paper", "small"] = "small",
    data: list[str] | None = None,
    root: Path | None = None,
    tuned: list[str] | None = None,
    seeds: list[int] | None = None,
    runs: Path = Path("runs"),
    out: Path = Path("reproduction"),
    **engine: Any,
) -> ReproduceResult:
    """Make tables and figures of the BMLR paper from runs, the paper's numbers beside ours.

    Args:
        model: The model.
        optimizer: Optimiser and learning-rate schedule.
        trainer: How long and on what to train.
        names: table1 to table6, fig1, fig3 to fig6, or all.
        scale: The paper's settings on its data sets, or a small model for few epochs on any.
        data: Data sets, with parameters as in crema-d:root=FOLDER; all of an experiment's, or digits if small.
        root: Folder of the prepared data; BMLR_DATA, or prepared, if left out.
        tuned: Folders of bmlr tune, whose best parameters are taken.
        seeds: Seeds; 0 1 2 if left out.
        runs: Folder of the runs. Finished ones are kept, interrupted ones resumed, failed ones tried again.
        out: Folder of the tables and figures.
        **engine: Options of :func:`bmlr.benchmark.make_engine`.
    """
    chosen = make_engine(**engine)
    settings = Settings(
        scale=scale, data=data or (), root=root, tuned=[Path(folder) for folder in tuned or ()],
        seeds=[0, 1, 2] if seeds is None else seeds, model=model, optimizer=optimizer, trainer=trainer,
    )  # fmt: skip
    return reproduce(names or [], settings, runs=runs, out=out, engine=chosen)


def _show_reproduce(result: ReproduceResult) -> None:
    for table in result.tables.values():
        print(f"{table.markdown()}\n")
    for line in (*result.files, *result.notes):
        print(line)
    _tell_failures(result.records)


def _tell_failures(records: Sequence[RunRecord]) -> None:
    if failed := [record for record in records if record.state == "failed"]:
        raise RunError(
            f"{len(failed)} of {len(records)} runs failed, see failed.json in {failed[0].directory}. "
            "The same command tries them again."
        )


COMMANDS: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "compare": (compare_command, _show_compare),
    "tune": (tune_command, _show_tune),
    "reproduce": (reproduce_command, _show_reproduce),
}

#: Options that take several values.
_LISTS: dict[str, dict[str, tuple[type, str]]] = {
    "compare": {
        "methods": (str, "Methods, with parameters as in LFM:mode=bb, with epochs of their own as in Joint@7."),
        "seeds": (int, "Seeds; 0 1 2 if left out."),
    },
    "tune": {
        "methods": (str, "Methods, with the parameters that are not searched as in LFM:mode=bb."),
        "space": (str, "What is searched, as alpha=0.1:10:log,beta=0:1 or BMLR:alpha=0.5|1|2."),
        "seeds": (int, "Seeds of the runs of a trial; 0 if left out."),
    },
    "reproduce": {
        "data": (str, "Data sets, as in crema-d:root=FOLDER; all of an experiment's, or digits at small scale."),
        "tuned": (str, "Folders of bmlr tune, whose best parameters are taken."),
        "seeds": (int, "Seeds; 0 1 2 if left out."),
    },
}


def add_arguments(name: str, function: Callable[..., Any], command: Any) -> None:
    """Add the options of a command to its parser."""
    lists = _LISTS[name]
    positional = {"names"} if name == "reproduce" else set()
    command.add_function_arguments(function, as_positional=False, skip={*lists, *positional})
    for option in positional:
        command.add_argument(option, nargs="+", help="table1 to table6, fig1, fig3 to fig6, or all.")
    for option, (kind, text) in lists.items():
        command.add_argument(f"--{option}", nargs="+", type=kind, help=text)
