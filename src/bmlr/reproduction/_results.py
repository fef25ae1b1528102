"""Tables of a reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import bmlr.methods
from bmlr.benchmark.statistics import Estimate, difference_of, estimate, mean_ranks
from bmlr.data import MultimodalData
from bmlr.data.store import describe_size
from bmlr.reproduction._figures import ExperimentRuns
from bmlr.reproduction._paper import ACCURACY, FIRST, RATIO, SECOND, Experiment
from bmlr.reproduction._scales import SCALES, Settings
from bmlr.runs import RunRecord
from bmlr.tables import Cell, Table, format_count, format_mean, mark_best


def frame(made: ExperimentRuns, settings: Settings) -> pd.DataFrame:
    """Every number of a table with the paper's, in per cent."""
    experiment, rows = made.experiment, []
    for row in experiment.rows:
        for name in made.data:
            records = made.records[row.label, name]
            for measure in experiment.measures:
                ours = _measure(records, measure)
                factor = 1 if measure == RATIO else 100
                base = _measure(made.records[row.baseline, name], measure) if row.baseline else None
                for paper_name in [name] if settings.scale == "paper" else experiment.data:
                    paper = experiment.numbers.get((row.label, paper_name, measure))
                    paper_base = experiment.numbers.get((row.baseline, paper_name, measure))
                    rows.append({
                        "table": experiment.name, "row": row.label, "method": records[0].label, "fusion": row.fusion,
                        "data": name, "measure": measure, "ours_mean": factor * ours.mean,
                        "ours_std": None if ours.std is None else factor * ours.std,
                        "runs": ours.runs, "failed": sum(record.state == "failed" for record in records),
                        "ours_gain": None if base is None else factor * (ours.mean - base.mean),
                        "paper_data": paper_name, "paper": paper,
                        "paper_gain": None if paper is None or paper_base is None else round(paper - paper_base, 4),
                        "difference": factor * ours.mean - paper if paper_name == name and paper is not None else None,
                        "best_on_test_mean": _optimistic(records, measure),
                    })  # fmt: skip
    return pd.DataFrame(rows)


def experiment_table(made: ExperimentRuns, settings: Settings) -> Table:
    """The table of an experiment, the paper's numbers beside ours.

    On the paper's data the difference is shown, on other data the gain over the baseline.
    """
    experiment = made.experiment
    columns: list[tuple[str, list[Cell]]] = [("method", [Cell(row.label) for row in experiment.rows])]
    ranks: dict[str, list[float]] = {}
    for name, data in made.data.items():
        for measure in experiment.measures:
            estimates = [_measure(made.records[row.label, name], measure) for row in experiment.rows]
            factor, digits = (1, 2) if measure == RATIO else (100, 1)
            cells = [
                Cell(_text(mean, made.records[row.label, name], factor, digits))
                for mean, row in zip(estimates, experiment.rows, strict=True)
            ]
            if measure != RATIO:
                cells = mark_best(cells)
            measured = _measure_name(measure, data)
            papers = [experiment.numbers.get((row.label, name, measure)) for row in experiment.rows]
            if settings.scale == "paper":
                columns.append(
                    (f"{name} {measured}: paper", [Cell("–" if value is None else f"{value:.2f}") for value in papers])
                )
                columns.append((f"{name} {measured}: ours", cells))
                differences = [
                    Cell("–" if not mean.runs or value is None else f"{factor * mean.mean - value:+.{digits}f}")
                    for mean, value in zip(estimates, papers, strict=True)
                ]
                columns.append((f"{name} {measured}: difference", differences))
            else:
                columns.append((f"{name} {measured}: ours", cells))
                columns.append(
                    (f"{name} {measured}: ours, gain", _gains(made, name, measure, estimates, factor, digits))
                )
            if measure == ACCURACY and (over := _over_ensemble(made, name, digits)):
                columns.append((f"{name}: over the ensemble", over))
            if measure == ACCURACY:
                ranks[name] = [mean.mean for mean in estimates]
    if settings.scale == "small":
        columns += _paper_columns(experiment)
    notes = _notes(made, settings)
    if len(ranks) > 1:
        table = pd.DataFrame(ranks, index=[row.label for row in experiment.rows])
        try:
            columns.append(("mean rank", [Cell(f"{rank:.1f}") for rank in mean_ranks(table)]))
        except ValueError:
            notes.append("No mean rank: no data set has finished runs of all methods.")
    return Table.from_columns(columns, notes, experiment.title)


def _gains(
    made: ExperimentRuns, name: str, measure: str, estimates: Sequence[Estimate], factor: float, digits: int
) -> list[Cell]:
    by_label = {row.label: mean for row, mean in zip(made.experiment.rows, estimates, strict=True)}
    cells = []
    for row in made.experiment.rows:
        ours, base = by_label[row.label], by_label.get(row.baseline)
        if base is None or not base.runs or not ours.runs:
            cells.append(Cell("–"))
            continue
        text = f"{factor * (ours.mean - base.mean):+.{digits}f}"
        if measure == ACCURACY:
            text = (
                f"{text} {_interval(made.records[row.label, name], made.records[row.baseline, name], digits)}".rstrip()
            )
        cells.append(Cell(text))
    return cells


def _over_ensemble(made: ExperimentRuns, name: str, digits: int) -> list[Cell]:
    """Differences to the ensemble of single modalities, with intervals; empty where the table has no such row."""
    labels = [row.label for row in made.experiment.rows if bmlr.methods.get(row.method) is bmlr.methods.Ensemble]
    cells = []
    for row in made.experiment.rows if labels else ():
        difference = difference_of(made.records[row.label, name], made.records[labels[0], name])
        text = "–" if difference is None else difference.text(digits)
        cells.append(Cell("0" if row.label == labels[0] else text))
    return cells


def _interval(records: Sequence[RunRecord], baseline: Sequence[RunRecord], digits: int) -> str:
    """The 95 % interval of a gain; "" unless the seeds are the same."""
    difference = difference_of(records, baseline)
    seeds = [[record.config["seed"] for record in group if record.result is not None] for group in (records, baseline)]
    return "" if difference is None or seeds[0] != seeds[1] else difference.text(digits, mean=False)


def _paper_columns(experiment: Experiment) -> list[tuple[str, list[Cell]]]:
    """The paper's numbers and gains on its own data.

    Across data only the sign and order of gains can be compared.
    """
    columns = []
    for name in experiment.data:
        for measure in experiment.measures:
            digits = 2 if measure == RATIO else 1
            texts = []
            for row in experiment.rows:
                value = experiment.numbers.get((row.label, name, measure))
                gain = ""
                if value is not None and row.baseline:
                    gain = f" ({value - experiment.numbers[row.baseline, name, measure]:+.{digits}f})"
                texts.append(Cell("–" if value is None else f"{value:.2f}{gain}"))
            columns.append(
                (f"paper, {name} {measure} (gain)" if measure != ACCURACY else f"paper, {name} (gain)", texts)
            )
    return columns


def _text(accuracy: Estimate, records: Sequence[RunRecord], factor: float, digits: int) -> str:
    failed = sum(record.state == "failed" for record in records)
    if failed == len(records):
        return "failed"
    return format_mean(accuracy.mean, accuracy.std, factor=factor, digits=digits) + (
        f" ({failed} failed)" if failed else ""
    )


def _measure(records: Sequence[RunRecord], measure: str) -> Estimate:
    return estimate(_read(record.result["test"], measure) for record in records if record.result is not None)


def _optimistic(records: Sequence[RunRecord], measure: str) -> float | None:
    """Best test accuracy of all epochs.

    None unless the protocol is the paper's.
    """
    scores = [(record.result or {}).get("test_best_epoch") for record in records]
    mean_score = estimate(_read(score, measure) for score in scores if score is not None)
    return (1 if measure == RATIO else 100) * mean_score.mean if mean_score.runs else None


def _read(score: Mapping[str, Any], measure: str) -> float | None:
    if measure == ACCURACY:
        return float(score["accuracy"])
    values = list((score["ratio"] if measure == RATIO else score["unimodal_accuracy"]).values())
    index = {FIRST: 0, SECOND: 1, RATIO: 0}[measure]
    value = values[index] if index < len(values) else None
    return None if value is None else float(value)


def _is_in_paper(experiment: Experiment, label: str) -> bool:
    return any(row == label for row, _, _ in experiment.numbers)


def _measure_name(measure: str, data: MultimodalData) -> str:
    names = list(data.modalities)
    return {ACCURACY: "(%)", FIRST: f"{names[0]} (%)", SECOND: f"{names[1]} (%)", RATIO: f"{names[0]}/{names[1]}"}[
        measure
    ]


def _settings_text(made: ExperimentRuns) -> str:
    """Settings of the baseline's runs.

    They are given by data set where they differ.
    """
    baseline, texts = made.experiment.rows[0], {}
    for name in made.data:
        config = made.records[baseline.label, name][0].config
        trainer, optimizer, model = config["trainer"], config["optimizer"], config["model"]
        stem = f", {model['stem']} stem" if model["stem"] else ""
        texts[name] = (
            f"{format_count(trainer['epochs'], 'epoch')}, batch {trainer['batch_size']}, {optimizer['name']} with "
            f"learning rate {optimizer['lr']:g}, width {model['width']}{stem}"
        )
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _comparability(made: ExperimentRuns) -> str:
    """What the paper's numbers are of, beside these."""
    shared = [name for name in made.data if name in made.experiment.data]
    others = [name for name in made.data if name not in made.experiment.data]
    paper = SCALES["paper"]
    notes = ["This shows that the pipeline runs."]
    if shared:
        notes.append(
            f"On {' and '.join(shared)} the paper's numbers are of other settings: {paper.epochs} epochs, batch "
            f"{paper.batch_size}, learning rate {paper.lr:g}, models of full width, its own splits."
        )
    if others:
        notes.append(f"The paper has no numbers on {' and '.join(others)}: its own are of other data and models.")
    return " ".join([*notes, "Only sign and order of the gains can be compared."])


def _notes(made: ExperimentRuns, settings: Settings) -> list[str]:
    methods = {row.label: bmlr.methods.get(row.method) for row in made.experiment.rows}
    rates = ", ".join(f"{name} {100 * data.constant_score():.1f} %" for name, data in made.data.items())
    protocols = " and ".join(dict.fromkeys(data.protocol for data in made.data.values()))
    seeds = ", ".join(map(str, settings.seeds))
    noun = "seed" if len(settings.seeds) == 1 else "seeds"
    settings_note = f"Scale {settings.scale}: {_settings_text(made)}, {noun} {seeds}, {protocols} protocol."
    notes = [
        f"Majority rate: {rates}.",
        settings_note,
        "Ours: test accuracy in the epoch selected on validation, mean ± sample standard deviation over seeds.",
    ]
    notes += [
        f"{name}: {note}"
        for name, data in made.data.items()
        if (note := describe_size("test", len(data.split("test"))))
    ]
    if extra := [row.label for row in made.experiment.rows if not _is_in_paper(made.experiment, row.label)]:
        notes.append(f"Not in the paper: {', '.join(extra)}, of single modalities that are trained first.")
    if settings.scale == "small":
        notes.append(
            "Gain over the row's baseline, with its 95 % interval for the multimodal accuracy (paired bootstrap "
            "over seeds and test samples; three seeds make it rather too narrow)."
        )
        notes.append(_comparability(made))
        if short := [label for label, method in methods.items() if method.epoch_parameters]:
            notes.append(
                f"Warm-ups, active epochs and resets of {', '.join(short)} are as large a share of the epochs as their "
                f"defaults are of {SCALES['paper'].epochs}."
            )
    notes += [
        f"{label} has fewer epochs, of several passes over the data each, for nearly the same data passes."
        for label, method in methods.items()
        if method.pass_parameters
    ]
    if failed := sum(record.state == "failed" for records in made.records.values() for record in records):
        notes.append(f"{format_count(failed, 'run')} failed, left out of the means.")
    return [*notes, *([made.experiment.remark] if made.experiment.remark else [])]
