"""``bmlr tune``: parameters of methods, searched on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from bmlr._files import check_output
from bmlr.commands._engine import EngineOptions
from bmlr.commands.options import FLAT
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData


def execute(  # noqa: PLR0913  (every parameter is an option)
    data: MultimodalData,
    model: ModelOptions = ModelOptions(),  # noqa: B008  (the parser reads defaults from the signature)
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
    dry_run: bool = False,
    engine: Annotated[EngineOptions, FLAT] = EngineOptions(),  # noqa: B008
) -> None:
    """Search parameters of methods on the validation split.

    Example:
        bmlr tune digits --methods BMLR --space alpha=0.1:10:log,beta=0:1 --trials 20

    Args:
        data: Data set.
        model: Encoders and fusion.
        optimizer: Optimiser and schedule of the learning rate.
        trainer: Length of training, hardware and checkpoints.
        methods: Methods, with the parameters that are not searched as in LFM:alpha=constant.
        space: Ranges to search, as alpha=0.1:10:log,beta=0:1 or BMLR:alpha=0.5|1|2.
        trials: Trials of every method; by default 20, or all points of the grid.
        sampler: Order of the search, tpe or grid.
        sampler_seed: Seed of the search.
        parallel: Trials of a method that start before the first is finished.
        seeds: Seeds of the runs of a trial; by default 0.
        runs: Folder of the runs; by default runs in the folder of --out, apart from runs that are results.
        out: Folder for the journal, tables, surfaces and the best configurations for bmlr train --config.
        dry_run: Say which runs there would be, how long they take and how large they are, and start nothing.
        engine: Where the runs are made.
    """
    from bmlr import benchmark
    from bmlr.benchmark.plans import plan_search

    check_output("--out", out, is_folder=True)
    workers = engine.make(trainer)
    if not methods or not space:
        raise ValueError("Options --methods and --space should name at least one each.")
    search = benchmark.Search(trials, sampler, sampler_seed, parallel)
    options: dict[str, Any] = {
        "seeds": seeds or [0], "model": model, "optimizer": optimizer, "trainer": trainer, "runs": runs, "out": out,
        "engine": workers,
    }  # fmt: skip
    if dry_run:
        print(plan_search(data, methods, space, search, **options).markdown())
        return
    result = benchmark.tune(data, methods, space, search, **options)
    print(result.table.markdown())
    for path in result.files:
        print(path)
