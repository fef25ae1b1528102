"""``bmlr reproduce``: the paper's numbers beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from bmlr._files import check_output
from bmlr.commands._engine import EngineOptions
from bmlr.commands._printing import raise_failures
from bmlr.commands._values import expand_home
from bmlr.commands.options import FLAT
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions


def execute(  # noqa: PLR0913  (every parameter is an option)
    model: ModelOptions = ModelOptions(),  # noqa: B008  (the parser reads defaults from the signature)
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    *,
    names: list[str],
    scale: Literal["paper", "small"] = "small",
    data: list[str] | None = None,
    root: Path | None = None,
    tuned: list[Path] | None = None,
    seeds: list[int] | None = None,
    runs: Path = Path("runs"),
    out: Path = Path("reproduction"),
    dry_run: bool = False,
    engine: Annotated[EngineOptions, FLAT] = EngineOptions(),  # noqa: B008
) -> None:
    """Make the tables and figures of the BMLR paper.

    Example:
        bmlr reproduce table1 --scale small --seeds 0 1 2
        bmlr reproduce table1 --scale paper --data crema-d --root prepared

    Args:
        model: Encoders and fusion.
        optimizer: Optimiser and schedule of the learning rate.
        trainer: Length of training, hardware and checkpoints.
        names: Any of table1 to table6, fig1 and fig3 to fig6, or all.
        scale: Settings of the paper on its data sets, or a small model for few epochs on any.
        data: Data sets, as in crema-d:root=FOLDER; by default all of an experiment, or digits at small scale.
        root: Folder of the prepared data; by default the variable BMLR_DATA, or prepared.
        tuned: Folders written by bmlr tune, whose best parameters are taken.
        seeds: Seeds; by default 0 1 2.
        runs: Folder of the runs; finished ones are kept, interrupted ones resumed, failed ones tried again.
        out: Folder for the tables and figures.
        dry_run: Say which runs there would be, how long they take and how large they are, and start nothing.
        engine: Where the runs are made.
    """
    from bmlr.reproduction import Settings, plan_reproduction, reproduce

    check_output("--out", out, is_folder=True)
    workers = engine.make(trainer)
    settings = Settings(
        scale=scale, data=[expand_home(text) for text in data or ()], root=root, tuned=tuned or (),
        seeds=[0, 1, 2] if seeds is None else seeds, model=model, optimizer=optimizer, trainer=trainer,
    )  # fmt: skip
    if dry_run:
        for table in plan_reproduction(names, settings, runs=runs, out=out, engine=workers):
            print(f"{table.markdown()}\n")
        return
    result = reproduce(names, settings, runs=runs, out=out, engine=workers)
    for table in result.tables.values():
        print(f"{table.markdown()}\n")
    for line in (*result.files, *result.notes):
        print(line)
    raise_failures(result.records)
