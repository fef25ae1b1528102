"""Commands that make and compare many runs: compare, tune, reproduce."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bmlr.benchmark._compare import Compared, compare, compare_store
from bmlr.benchmark._engines import make_engine
from bmlr.data import MultimodalData
from bmlr.training import ModelOptions, OptimizerOptions, RunError, TrainerOptions


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
) -> Compared:
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


def _show_compare(result: Compared) -> None:
    print(result.table.markdown())
    for path in result.files:
        print(path)
    if failed := [record for record in result.records if record.state == "failed"]:
        raise RunError(
            f"{len(failed)} of {len(result.records)} runs failed, see failed.json in {failed[0].directory}. "
            "The same command tries them again."
        )


COMMANDS: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "compare": (compare_command, _show_compare),
}

#: Options that take several values.
_LISTS: dict[str, dict[str, tuple[type, str]]] = {
    "compare": {
        "methods": (str, "Methods, with parameters as in LFM:mode=bb, with epochs of their own as in Joint@7."),
        "seeds": (int, "Seeds; 0 1 2 if left out."),
    },
}


def add_arguments(name: str, function: Callable[..., Any], command: Any) -> None:
    """Add the options of a command to its parser."""
    lists = _LISTS.get(name, {})
    command.add_function_arguments(function, as_positional=False, skip=set(lists))
    for option, (kind, text) in lists.items():
        command.add_argument(f"--{option}", nargs="+", type=kind, help=text)
