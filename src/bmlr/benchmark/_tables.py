"""The table and the numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bmlr._checks import check_choice
from bmlr.benchmark._comparison import Comparison, MethodSummary
from bmlr.benchmark.references import reference_note
from bmlr.benchmark.statistics import Estimate
from bmlr.data.store import describe_size
from bmlr.tables import Cell, Table, format_count, format_mean, mark_best
from bmlr.tasks import MetricForm, metric_form


def comparison_table(comparison: Comparison, *, precision: int | None = None, metrics: Sequence[str] = ()) -> Table:
    """A comparison as a table: mean ± std, of rates in per cent.

    Args:
        comparison: The comparison.
        precision: Decimals of the primary metric; by default 1 of rates, else 3.
        metrics: Further metrics of the multimodal prediction with a column each.

    Raises:
        ValueError: If the runs have no such metric.
    """
    for name in metrics:
        check_choice("metrics", name, comparison.metrics)
    methods, form = comparison.methods, metric_form(comparison.metric)
    precision = form.digits if precision is None else precision
    columns: list[tuple[str, list[Cell]]] = [("method", [Cell(method.label) for method in methods])]

    def add(
        head: str,
        read: Callable[[MethodSummary], Estimate],
        factor: float = form.factor,
        digits: int = precision,
        *,
        marked: MetricForm | None = None,
    ) -> None:
        estimates = [read(method) for method in methods]
        if any(estimate.runs for estimate in estimates):
            cells = [
                Cell(
                    "failed"
                    if not method.seeds and method.failed
                    else format_mean(estimate.mean, estimate.std, factor=factor, digits=digits)
                )
                for method, estimate in zip(methods, estimates, strict=True)
            ]
            columns.append((head, cells if marked is None else mark_best(cells, marked.goodness)))

    undefined = Estimate(math.nan, None, 0)
    add(form.head("fused"), lambda method: method.fused, marked=form)
    for name in comparison.modalities:
        add(form.head(name), lambda method, name=name: method.unimodal.get(name, undefined), marked=form)  # type: ignore[misc]
    for name in dict.fromkeys(metrics):
        other = metric_form(name)
        if name != comparison.metric:
            add(
                other.head("fused"),
                lambda method, name=name: method.metrics.get(name, undefined),  # type: ignore[misc]
                other.factor,
                other.digits,
                marked=other,
            )
    for pair in comparison.pairs:
        add(f"ratio {pair}", lambda method, pair=pair: method.ratio.get(pair, undefined), 1, 2)  # type: ignore[misc]
    if comparison.baseline is not None:
        head = f"difference to {comparison.baseline} (95 %)"
        columns.append((head, [Cell(_difference_text(method, comparison.baseline, precision)) for method in methods]))
    for name, label in comparison.references.items():
        texts = [_over_text(method, name, label, precision) for method in methods]
        columns.append((f"over the {name} (95 %)", [Cell(text) for text in texts]))
    add(form.head("last epoch"), lambda method: method.last_epoch)
    add(form.head("best on test"), lambda method: method.best_on_test)
    columns.append(("runs", [Cell(_runs_text(method)) for method in methods]))
    columns.append(("data passes", [Cell(_format_number(method.data_passes.mean, "g")) for method in methods]))
    columns.append(("minutes", [Cell(_format_number(method.minutes.mean, ".1f")) for method in methods]))
    return Table.from_columns(columns, _notes(comparison), f"{comparison.data}, {comparison.protocol} protocol")


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """A comparison as numbers, a row per method, with all metrics; rates in [0, 1]."""
    rows = []
    for method in comparison.methods:
        row: dict[str, Any] = {"method": method.label}
        row |= {"data": comparison.data, "protocol": comparison.protocol, "samples": comparison.samples}
        for metric in comparison.metrics:
            row |= _numbers(metric, method.metrics.get(metric, Estimate(math.nan, None, 0)))
            for name in comparison.modalities:
                if name in method.unimodal_metrics.get(metric, {}):
                    row |= _numbers(f"{metric}_{name}", method.unimodal_metrics[metric][name])
        for pair in comparison.pairs:
            if pair in method.ratio:
                row |= _numbers(f"ratio_{pair}", method.ratio[pair])
        if method.last_epoch.runs:
            row |= _numbers(f"last_epoch_{comparison.metric}", method.last_epoch)
            row |= _numbers(f"best_on_test_{comparison.metric}", method.best_on_test)
        if comparison.baseline is not None:
            difference = method.difference
            row |= {
                "baseline": comparison.baseline,
                "difference": None if difference is None else difference.mean,
                "difference_low": None if difference is None else difference.low,
                "difference_high": None if difference is None else difference.high,
                "resampled": "" if difference is None else difference.over,
            }
        for name, label in comparison.references.items():
            key, over = f"over_{name.replace(' ', '_')}", method.over.get(name)
            row |= {
                key: None if over is None else over.mean,
                f"{key}_low": None if over is None else over.low,
                f"{key}_high": None if over is None else over.high,
                name.replace(" ", "_"): label,
            }
        row |= {"constant_score": comparison.constant_score, "runs": len(method.seeds), "failed": method.failed}
        row |= {"seeds": " ".join(map(str, method.seeds)), "epochs": method.epochs}
        row |= {"data_passes": method.data_passes.mean, "minutes": method.minutes.mean}
        rows.append(row)
    return pd.DataFrame(rows)


def _numbers(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{name}_mean": estimate.mean, f"{name}_std": estimate.std}


def _format_number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _runs_text(method: MethodSummary) -> str:
    extra = [
        f"{count} {state}" for count, state in ((method.failed, "failed"), (method.unfinished, "unfinished")) if count
    ]
    return f"{len(method.seeds)} ({', '.join(extra)})" if extra else str(len(method.seeds))


def _difference_text(method: MethodSummary, baseline: str, digits: int) -> str:
    difference = method.difference
    if method.label == baseline:
        return "0"
    return "–" if difference is None else difference.text(digits)


def _over_text(method: MethodSummary, name: str, label: str, digits: int) -> str:
    over = method.over.get(name)
    if method.label == label:
        return "0"
    return "–" if over is None else over.text(digits)


def _notes(comparison: Comparison) -> list[str]:
    seeds = max(len(method.seeds) for method in comparison.methods)
    constant = metric_form(comparison.metric).constant_text(comparison.constant_score)
    differences = [d for m in comparison.methods for d in (m.difference, *m.over.values())]
    over = dict.fromkeys(d.over for d in differences if d is not None and d.low is not None)
    where = (
        f"Test split of {comparison.data}, {format_count(comparison.samples, 'sample')}, {comparison.protocol} protocol"
    )
    notes = [
        f"{constant[:1].upper()}{constant[1:]}.",
        f"{where}, epoch selected on validation.",
        *filter(None, [describe_size("test", comparison.samples)] if comparison.metric == "accuracy" else []),
        f"Mean ± sample standard deviation over {seeds} seeds." if seeds > 1 else "One seed.",
    ]
    notes += [reference_note(name, label) for name, label in comparison.references.items()]
    if over:
        notes.append(f"Interval of the difference: paired bootstrap over {' or '.join(over)}, percentile method.")
    if any(method.best_on_test.runs for method in comparison.methods):
        notes.append("Best on test is selected on the test split, hence optimistic.")
    return [*notes, *comparison.notes]
