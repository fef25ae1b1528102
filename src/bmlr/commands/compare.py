"""``bmlr compare``: methods over seeds, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bmlr._files import check_output
from bmlr.commands._engine import EngineOptions
from bmlr.commands._printing import raise_failures
from bmlr.commands.options import FLAT
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData


def execute(  # noqa: PLR0913  (every parameter is an option)
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
    metrics: list[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    engine: Annotated[EngineOptions, FLAT] = EngineOptions(),  # noqa: B008
) -> None:
    """Train and compare methods over several seeds.

    Example:
        bmlr compare digits --methods Joint BMLR --seeds 0 1 2 --out comparison
        bmlr compare --runs runs --out comparison

    Args:
        data: Data set; without --data and --methods the runs in --runs are compared.
        model: Encoders and fusion.
        optimizer: Optimiser and schedule of the learning rate.
        trainer: Length of training, hardware and checkpoints.
        methods: Methods, with parameters as in LFM:alpha=constant and epochs of their own as in ReconBoost:t1=1,t2=1@7.
        seeds: Seeds; by default 0 1 2.
        runs: Folder of the runs; finished ones are kept, interrupted ones resumed, failed ones tried again.
        baseline: Method the differences are to; by default joint training, where there are runs of it.
        out: Folder for the tables and figures.
        metrics: Further metrics of the multimodal prediction with a column in the table, such as macro_f1, nll, ece,
            rmse or auroc; the CSV files hold all metrics, of the modalities too.
        force: Compare runs of different data, protocol or budget too.
        dry_run: Say which runs there would be, how long they take and how large they are, and start nothing.
        engine: Where the runs are made.
    """
    from bmlr import benchmark
    from bmlr.benchmark.grid import make_jobs
    from bmlr.benchmark.plans import make_plan

    if out is not None:
        check_output("--out", out, is_folder=True)
    workers = engine.make(trainer)
    if (data is None) != (not methods):
        raise ValueError("Options --data and --methods belong together; without both, the runs in --runs are compared.")
    if dry_run and data is not None and methods:
        jobs = make_jobs(data, methods, seeds or [0, 1, 2], model=model, optimizer=optimizer, trainer=trainer)
        print(make_plan(jobs, runs, workers).table().markdown())
        return
    if data is None or not methods:
        if not runs.exists():
            raise ValueError(
                f"There are no runs to compare: no folder {runs}. Name it with --runs, or make runs: bmlr compare DATA "
                "--methods NAME NAME."
            )
        result = benchmark.compare_store([runs], baseline=baseline, out=out, force=force, metrics=metrics or [])
    else:
        result = benchmark.compare(
            data, methods, [0, 1, 2] if seeds is None else seeds, model=model, optimizer=optimizer, trainer=trainer,
            runs=runs, engine=workers, baseline=baseline, out=out, force=force, metrics=metrics or [],
        )  # fmt: skip
    print(result.table.markdown())
    for path in result.files:
        print(path)
    raise_failures(result.records)
