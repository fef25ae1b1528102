"""Comparison of methods: runs, table and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bmlr._files import atomic_write_text
from bmlr.benchmark._comparison import Comparison, compare_runs, find_label, run_frame
from bmlr.benchmark._tables import comparison_frame, comparison_table
from bmlr.benchmark.drawing import draw_comparison
from bmlr.benchmark.engines import Engine
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.benchmark.specification import MethodSpecification
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunRecord, find_runs, group_runs
from bmlr.runs.layout import CONFIG
from bmlr.tables import Table, write_table


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """A comparison with its table, runs and files.

    Attributes:
        comparison: The numbers.
        table: The table.
        records: The runs.
        files: The files that were written.
    """

    comparison: Comparison
    table: Table
    records: Sequence[RunRecord]
    files: Sequence[Path]


def compare(  # noqa: PLR0913
    data: MultimodalData,
    methods: Sequence[MethodSpecification | str],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    model: ModelOptions | Callable[..., MultimodalClassifier] | None = None,
    optimizer: OptimizerOptions | None = None,
    trainer: TrainerOptions | None = None,
    runs: Path | str = "runs",
    engine: Engine | None = None,
    baseline: str | None = None,
    out: Path | None = None,
    force: bool = False,
    metrics: Sequence[str] = (),
) -> CompareResult:
    """Train every method with every seed, reusing finished runs, and compare them.

    Args:
        data: Data set.
        methods: Methods, as :func:`bmlr.benchmark.specification.parse_method` reads them.
        seeds: Seeds.
        model: Options of the model, or a function that makes a whole one.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        runs: Folder of the runs.
        engine: Engine that trains the runs; None trains one after another on this machine.
        baseline: Method the differences are to, one of ``methods``.
        out: Folder of the tables and figures; None writes none.
        force: Compare methods of different budgets too.
        metrics: Further metrics of the multimodal prediction with a column in the table; the files hold all.

    Returns:
        The comparison, its table and the runs.

    Raises:
        ValueError: If methods or options do not fit, no run finished, or the budgets differ.
        FileNotFoundError: If data is missing.
    """
    jobs = make_jobs(data, methods, seeds, model=model, optimizer=optimizer, trainer=trainer)
    labels = list(dict.fromkeys(job.label for job in jobs))
    if baseline is not None:
        find_label(baseline, labels)  # an unknown one is told before hours of training rather than after
    records = run_grid(jobs, Path(runs), engine)
    return _conclude(sorted(records, key=lambda record: labels.index(record.label)), baseline, out, force, metrics)


def compare_store(
    runs: Iterable[Path],
    *,
    baseline: str | None = None,
    out: Path | None = None,
    force: bool = False,
    metrics: Sequence[str] = (),
) -> CompareResult:
    """Compare the runs in folders, grouped by their settings.

    Args:
        runs: Directories of runs, or folders with runs up to four levels below.
        baseline: Method the differences are to, as the table names it.
        out: Folder of the tables and figures; None writes none.
        force: Compare methods of different data or budgets too.
        metrics: Further metrics of the multimodal prediction with a column in the table.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no run.
        ValueError: If the runs do not belong in one table, or a file is damaged.
    """
    folders = list(runs)
    groups = group_runs(find_runs(folders))
    if not groups:
        raise FileNotFoundError(f"There is no run in {', '.join(map(str, folders))}: no folder in it holds a {CONFIG}.")
    return _conclude([record for members in groups.values() for record in members], baseline, out, force, metrics)


def _conclude(
    records: Sequence[RunRecord], baseline: str | None, out: Path | None, force: bool, metrics: Sequence[str]
) -> CompareResult:
    comparison = compare_runs(records, baseline=baseline, force=force)
    table = comparison_table(comparison, metrics=metrics)
    files: list[Path] = []
    if out is not None:
        files = write_table(table, comparison_frame(comparison), out, "table")
        atomic_write_text(out / "runs.csv", run_frame(records).to_csv(index=False))
        files += [out / "runs.csv", *draw_comparison(records, out)]
    return CompareResult(comparison, table, records, files)
