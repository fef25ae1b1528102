"""The paper's tables and figures from runs: which runs each needs, its numbers beside ours, its figures."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

import bmlr.data
import bmlr.methods
from bmlr._checks import check_choice, nearest_name
from bmlr._files import atomic_write_text
from bmlr.benchmark._contents import Contents, Picture, write_contents
from bmlr.benchmark._engines import Engine
from bmlr.benchmark._grid import make_jobs, run_grid
from bmlr.benchmark._paper import ACCURACY, EXPERIMENTS, FIRST, GRID, RATIO, SECOND, Experiment, Row
from bmlr.benchmark._reproduce_figures import Drawn, Made, draw_bars, draw_figures
from bmlr.benchmark._specification import parse_data, parse_method
from bmlr.benchmark._statistics import Estimate, difference_of, estimate, mean_ranks, run_frame
from bmlr.benchmark._store import Job, RunRecord
from bmlr.benchmark._tables import Cell, Table, mark_best, spread, write_table
from bmlr.benchmark._tune import Search, tune
from bmlr.data import MultimodalData
from bmlr.training import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.training._config import class_path

ScaleName = Literal["paper", "small"]
#: Data sets that ``bmlr prepare`` makes.
_PREPARED = ("crema-d", "kinetics-sounds", "ave", "mosi", "mosei")
#: Ablations of BMLR whose α and β are its own.
_SHARE = {"OnlyReshape", "VanillaReshape"}
#: Parameters that count epochs of a training of full length: when a method begins, ends or resets something.
_TIMES = {
    "OGMGE": ("last_epoch",), "AGM": ("last_epoch",), "OPM": ("warmup",), "Remix": ("warmup",),
    "DiagnosingRelearning": ("reinit_epoch",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings of a reproduction.

    Attributes:
        epochs: Epochs.
        batch_size: Samples per step.
        lr: Learning rate of Adam; None takes the data set's.
        width: Channels of the ResNets' first stage; None takes the data set's.
        imagenet_from: Pixels of the shorter side from which all ResNets get ImageNet's stem, which costs a quarter of
            the small one; None takes it where the model's default does.
        reconboost: ReconBoost as it is run, and its passes over the data per epoch.
    """

    epochs: int
    batch_size: int
    lr: float | None
    width: int | None
    imagenet_from: int | None
    reconboost: tuple[str, int]


#: ``paper``: Sec. IV-A2, ResNet-18 of full width and Transformers. ``small``: the same pipeline in minutes on a CPU.
SCALES: dict[str, Scale] = {
    "paper": Scale(epochs=70, batch_size=64, lr=5e-5, width=None, imagenet_from=None, reconboost=("ReconBoost", 8)),
    "small": Scale(
        epochs=10, batch_size=64, lr=1e-3, width=4, imagenet_from=24, reconboost=("ReconBoost:t1=1,t2=1", 2)
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a reproduction is run with.

    Attributes:
        scale: paper or small.
        data: Data sets as written, in place of the experiments' own; empty takes those, or digits at small scale.
        root: Folder of prepared data, for data sets that are named without one.
        tuned: Folders of ``bmlr tune``, whose best parameters are taken for the data set they were searched on.
        seeds: Seeds.
        model: Options of the model.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
    """

    scale: ScaleName = "small"
    data: Sequence[str] = ()
    root: Path | None = None
    tuned: Sequence[Path] = ()
    seeds: Sequence[int] = (0, 1, 2)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = dataclasses.field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, SCALES)


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What came of a reproduction.

    Attributes:
        tables: Tables by experiment.
        records: All runs.
        files: What was written.
        notes: Figures that could not be drawn, with the reason.
    """

    tables: Mapping[str, Table]
    records: Sequence[RunRecord]
    files: Sequence[Path]
    notes: Sequence[str]


def reproduce(
    names: Sequence[str],
    settings: Settings | None = None,
    *,
    runs: Path | str = "runs",
    out: Path | str = "reproduction",
    engine: Engine | None = None,
    say: Callable[[str], None] | None = None,
) -> Reproduced:
    """Make the runs of tables and figures of the BMLR paper, and the tables and figures from them.

    Experiments share runs; a run that is finished is not made again, so another experiment, or the same after an
    interruption, costs what it lacks.

    Args:
        names: ``table1`` to ``table6``, ``fig1``, ``fig3`` to ``fig6``, or ``all``.
        settings: What it is run with.
        runs: Folder of the runs; the trials of fig5 are kept in ``out``.
        out: Folder of the tables and figures.
        engine: Where the runs are made; None is one after another on this machine.
        say: Takes a line of text as each run ends; None prints to the error stream.

    Raises:
        ValueError: If there is no such experiment, or it is about none of the data sets given.
        FileNotFoundError: If data is missing; the message says what makes it.
    """
    settings = settings or Settings()
    experiments = _chosen(names)
    data = _make_all_data(experiments, settings)
    _check_data(data.values())
    folder, store = Path(out), Path(runs)
    jobs: dict[tuple[str, str, str], list[Job]] = {}
    for experiment in experiments:
        for row in experiment.rows:
            for text in _data_names(experiment, settings):
                jobs[experiment.name, row.label, data[text].name] = _jobs(row, data[text], settings)
    every = [job for some in jobs.values() for job in some]
    records = iter(run_grid(every, store, engine, say=say) if every else [])
    made_records = {key: [next(records) for _ in some] for key, some in jobs.items()}

    tables: dict[str, Table] = {}
    files: list[Path] = []
    contents: list[Table | Picture] = []
    notes: list[str] = []
    for experiment in experiments:
        mine = {data[text].name: data[text] for text in _data_names(experiment, settings)}
        made = Made(
            experiment, mine, {key[1:]: some for key, some in made_records.items() if key[0] == experiment.name}
        )
        if experiment.is_table:
            tables[experiment.name] = table = _table(made, settings)
            contents.append(table)
            files += write_table(table, _frame(made, settings), folder, experiment.name)
            drawings = [draw_bars(made, folder)]
        elif experiment.name == "fig5":
            drawings = [_surface(experiment, mine, settings, folder, engine, say)]
        else:
            drawings = [draw_figures(made, name, folder) for name in mine]
        for drawn in drawings:
            files += drawn.files
            contents += drawn.pictures
            notes += drawn.notes
    unique = {record.directory: record for some in made_records.values() for record in some}
    if unique:
        atomic_write_text(folder / "runs.csv", run_frame(unique.values()).to_csv(index=False))
        files.append(folder / "runs.csv")
    where = ", ".join(one.name for one in data.values())
    title = f"Tables and figures of the BMLR paper, {settings.scale} scale, on {where}"
    files.append(write_contents(Contents(title, contents, notes), folder))
    return Reproduced(tables, list(unique.values()), files, notes)


# What is run


def _chosen(names: Sequence[str]) -> list[Experiment]:
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise ValueError(
                f"`names` should be among {', '.join(EXPERIMENTS)}, all. Found '{name}'."
                f"{nearest_name(name, EXPERIMENTS)}"
            )
    if not names:
        raise ValueError(f"`names` should be at least one of {', '.join(EXPERIMENTS)}, all. Found none.")
    return [one for name, one in EXPERIMENTS.items() if name in names or "all" in names]


def _data_names(experiment: Experiment, settings: Settings) -> list[str]:
    """The data sets of an experiment, as written."""
    if settings.scale == "small":
        return list(settings.data or ["digits"])
    if not settings.data:
        return list(experiment.data)
    found = [text for text in settings.data if _plain_name(text) in experiment.data]
    if not found:
        raise ValueError(
            f"{experiment.name} is about {', '.join(experiment.data)} at the paper's scale. "
            f"Found {', '.join(settings.data)}; other data sets take --scale small."
        )
    return found


def _plain_name(text: str) -> str:
    return text.partition(":")[0]


def _make_all_data(experiments: Sequence[Experiment], settings: Settings) -> dict[str, MultimodalData]:
    """The data sets of all experiments, by how they are written."""
    texts = list(dict.fromkeys(text for one in experiments for text in _data_names(one, settings)))
    data = {text: _make_data(text, settings) for text in texts}
    names = [one.name for one in data.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Option --data should name each data set once. Found {twice[0]} twice.")
    return data


def _make_data(text: str, settings: Settings) -> MultimodalData:
    """A data set, with the folder and the protocol of the settings where it takes them and says nothing else."""
    name, _, given = text.partition(":")
    written = {item.partition("=")[0].strip() for item in given.split(",") if item}
    extra = []
    if "." not in name:
        accepted = inspect.signature(bmlr.data.get(name).__init__).parameters
        root = settings.root or os.environ.get("BMLR_DATA") or ("prepared" if name in _PREPARED else None)
        if "root" in accepted and "root" not in written and root is not None:
            extra.append(f"root={root}")
        if settings.scale == "paper" and "protocol" in accepted and "protocol" not in written:
            extra.append("protocol=paper")
    both = ",".join([*([given] if given else []), *extra])
    return parse_data(f"{name}:{both}" if both else name)


def _check_data(data: Iterable[MultimodalData]) -> None:
    """Find out before the first run which data are missing, all of them at once."""
    missing = []
    for one in data:
        try:
            one.prepare()
        except FileNotFoundError as error:
            hint = ""
            if one.name in _PREPARED and "bmlr prepare" not in str(error):
                hint = f" Make it with: bmlr prepare {one.name} SOURCE {getattr(one, 'root', None) or 'DEST'}"
            missing.append(f"{one.name}: {error}{hint}")
    if missing:
        raise FileNotFoundError(" ".join(missing) + " Name another folder with --root, or fewer data sets with --data.")


def _jobs(row: Row, data: MultimodalData, settings: Settings) -> list[Job]:
    model, optimizer, trainer = _options(settings, data)
    method = row.method
    if row.method == "ReconBoost":
        text, passes = SCALES[settings.scale].reconboost
        epochs = max(2, round((trainer.epochs or 1) / passes))  # an epoch of it is several passes over the data
        method = f"{text}@{epochs}"
    elif settings.scale == "small":
        method = _shortened(method, trainer.epochs or 1)
    specification = parse_method(method)
    if found := _tuned_parameters(specification.name, data, settings):
        parameters = ",".join(f"{key}={value}" for key, value in {**found, **specification.parameters}.items())
        method = f"{specification.name}:{parameters}{f'@{specification.epochs}' if specification.epochs else ''}"
    model = dataclasses.replace(model, fusion=row.fusion)
    return make_jobs(data, [method], settings.seeds, model=model, optimizer=optimizer, trainer=trainer)


def _shortened(method: str, epochs: int) -> str:
    """The method with the epochs it counts in brought from the paper's length to this one: a warm-up ends in time."""
    defaults = inspect.signature(bmlr.methods.get(method)).parameters
    share = epochs / SCALES["paper"].epochs
    times = [f"{name}={max(1, round(share * defaults[name].default))}" for name in _TIMES.get(method, ())]
    return f"{method}:{','.join(times)}" if times else method


def _options(settings: Settings, data: MultimodalData) -> tuple[ModelOptions, OptimizerOptions, TrainerOptions]:
    """The options, with the scale's settings in every place that was left open."""
    scale = SCALES[settings.scale]
    model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
    return (
        dataclasses.replace(model, width=model.width or scale.width, stem=model.stem or _stem(scale, data)),
        dataclasses.replace(optimizer, lr=optimizer.lr or scale.lr),
        dataclasses.replace(
            trainer, epochs=trainer.epochs or scale.epochs, batch_size=trainer.batch_size or scale.batch_size
        ),
    )


def _stem(scale: Scale, data: MultimodalData) -> Literal["imagenet"] | None:
    """The stem of a scale for a data set; None leaves it to the model."""
    kinds = ("image", "spectrogram", "frames")
    sides = [min(one.shape[-2:]) for one in data.modalities.values() if one.kind in kinds]
    fits = scale.imagenet_from is not None and sides and min(sides) >= scale.imagenet_from
    return "imagenet" if fits else None


def _tuned_parameters(method: str, data: MultimodalData, settings: Settings) -> dict[str, Any]:
    """Parameters that a search has found for a method on a data set; ablations of BMLR take its α and β."""
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for folder in settings.tuned:
        files = sorted(folder.glob("best-*.yaml"))
        if not files:
            raise FileNotFoundError(f"There is no best-….yaml in {folder}: it should be the folder of a bmlr tune.")
        for path in files:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if content["data"]["class_path"] != class_path(type(data)):
                continue
            name = content["method"]["class_path"].rpartition(".")[2]
            found = {key: value for key, value in content["method"]["init_args"].items() if value is not None}
            if name == method:
                own |= found
            elif name == "BMLR" and method in _SHARE:
                shared |= found
    return own or shared


# Tables


def _frame(made: Made, settings: Settings) -> pd.DataFrame:
    """Every number of a table with the paper's, one row each; accuracies in per cent."""
    experiment, rows = made.experiment, []
    for row in experiment.rows:
        for name in made.data:
            records = made.records[row.label, name]
            for measure in experiment.measures:
                ours = _measure(records, measure)
                factor = 1 if measure == RATIO else 100
                base = _measure(made.records[row.baseline, name], measure) if row.baseline else None
                for paper_name in [name] if settings.scale == "paper" else experiment.data:
                    paper = experiment.numbers[row.label, paper_name, measure]
                    paper_base = experiment.numbers[row.baseline, paper_name, measure] if row.baseline else None
                    rows.append({
                        "table": experiment.name, "row": row.label, "method": records[0].label, "fusion": row.fusion,
                        "data": name, "measure": measure, "ours_mean": factor * ours.mean,
                        "ours_std": None if ours.std is None else factor * ours.std,
                        "runs": ours.runs, "failed": sum(record.state == "failed" for record in records),
                        "ours_gain": None if base is None else factor * (ours.mean - base.mean),
                        "paper_data": paper_name, "paper": paper,
                        "paper_gain": None if paper_base is None else round(paper - paper_base, 4),
                        "difference": factor * ours.mean - paper if paper_name == name else None,
                        "best_on_test_mean": _optimistic(records, measure),
                    })  # fmt: skip
    return pd.DataFrame(rows)


def _table(made: Made, settings: Settings) -> Table:
    """The paper's number, ours and the difference for the same data; gains over the baseline for other data."""
    experiment = made.experiment
    columns: list[tuple[str, list[Cell]]] = [("method", [Cell(row.label) for row in experiment.rows])]
    ranks: dict[str, list[float]] = {}
    for name, data in made.data.items():
        for measure in experiment.measures:
            estimates = [_measure(made.records[row.label, name], measure) for row in experiment.rows]
            factor, digits = (1, 2) if measure == RATIO else (100, 1)
            cells = [
                Cell(_text(one, made.records[row.label, name], factor, digits))
                for one, row in zip(estimates, experiment.rows, strict=True)
            ]
            if measure != RATIO:
                cells = mark_best(cells, [one.mean for one in estimates], digits)
            what = _measure_name(measure, data)
            papers = [experiment.numbers.get((row.label, name, measure)) for row in experiment.rows]
            if settings.scale == "paper":
                columns.append(
                    (f"{name} {what}: paper", [Cell(f"{value:.2f}") for value in papers if value is not None])
                )
                columns.append((f"{name} {what}: ours", cells))
                differences = [
                    Cell("–" if not one.runs or value is None else f"{factor * one.mean - value:+.{digits}f}")
                    for one, value in zip(estimates, papers, strict=True)
                ]
                columns.append((f"{name} {what}: difference", differences))
            else:
                columns.append((f"{name} {what}: ours", cells))
                columns.append((f"{name} {what}: ours, gain", _gains(made, name, measure, estimates, factor, digits)))
            if measure == ACCURACY:
                ranks[name] = [one.mean for one in estimates]
    if settings.scale == "small":
        columns += _paper_columns(experiment)
    notes = _notes(made, settings)
    if len(ranks) > 1:
        table = pd.DataFrame(ranks, index=[row.label for row in experiment.rows])
        try:
            columns.append(("mean rank", [Cell(f"{rank:.1f}") for rank in mean_ranks(table)]))
        except ValueError:
            notes.append("No mean rank: no data set has finished runs of all methods.")
    heads = [head for head, _ in columns]
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Table(heads, rows, notes, experiment.title)


def _gains(
    made: Made, name: str, measure: str, estimates: Sequence[Estimate], factor: float, digits: int
) -> list[Cell]:
    by_label = {row.label: one for row, one in zip(made.experiment.rows, estimates, strict=True)}
    cells = []
    for row in made.experiment.rows:
        mine, base = by_label[row.label], by_label.get(row.baseline)
        if base is None or not base.runs or not mine.runs:
            cells.append(Cell("–"))
            continue
        text = f"{factor * (mine.mean - base.mean):+.{digits}f}"
        if measure == ACCURACY:
            text = (
                f"{text} {_interval(made.records[row.label, name], made.records[row.baseline, name], digits)}".rstrip()
            )
        cells.append(Cell(text))
    return cells


def _interval(records: Sequence[RunRecord], baseline: Sequence[RunRecord], digits: int) -> str:
    """The 95 % interval of a gain, where both have the same seeds and so the same gain."""
    found = difference_of(records, baseline)
    seeds = [[one.config["seed"] for one in some if one.result is not None] for some in (records, baseline)]
    return "" if found is None or seeds[0] != seeds[1] else found.text(digits, mean=False)


def _paper_columns(experiment: Experiment) -> list[tuple[str, list[Cell]]]:
    """The paper's numbers on its own data, with gains, which can be compared across data in sign and order only."""
    columns = []
    for name in experiment.data:
        for measure in experiment.measures:
            digits = 2 if measure == RATIO else 1
            texts = []
            for row in experiment.rows:
                value = experiment.numbers[row.label, name, measure]
                gain = ""
                if row.baseline:
                    gain = f" ({value - experiment.numbers[row.baseline, name, measure]:+.{digits}f})"
                texts.append(Cell(f"{value:.2f}{gain}"))
            columns.append(
                (f"paper, {name} {measure} (gain)" if measure != ACCURACY else f"paper, {name} (gain)", texts)
            )
    return columns


def _text(one: Estimate, records: Sequence[RunRecord], factor: float, digits: int) -> str:
    failed = sum(record.state == "failed" for record in records)
    if failed == len(records):
        return "failed"
    return spread(one, factor, digits) + (f" ({failed} failed)" if failed else "")


def _measure(records: Sequence[RunRecord], measure: str) -> Estimate:
    return estimate(_read(record.result["test"], measure) for record in records if record.result is not None)


def _optimistic(records: Sequence[RunRecord], measure: str) -> float | None:
    """The largest test accuracy of all epochs, as papers report it; only the paper protocol has it."""
    scores = [(record.result or {}).get("test_best_epoch") for record in records]
    found = estimate(_read(score, measure) for score in scores if score is not None)
    return (1 if measure == RATIO else 100) * found.mean if found.runs else None


def _read(score: Mapping[str, Any], measure: str) -> float | None:
    if measure == ACCURACY:
        return float(score["accuracy"])
    values = list((score["ratio"] if measure == RATIO else score["unimodal_accuracy"]).values())
    place = {FIRST: 0, SECOND: 1, RATIO: 0}[measure]
    value = values[place] if place < len(values) else None
    return None if value is None else float(value)


def _measure_name(measure: str, data: MultimodalData) -> str:
    names = list(data.modalities)
    return {ACCURACY: "(%)", FIRST: f"{names[0]} (%)", SECOND: f"{names[1]} (%)", RATIO: f"{names[0]}/{names[1]}"}[
        measure
    ]


def _what_was_set(made: Made) -> str:
    """Settings of the baseline's runs, which those of the other rows share; by data set where they differ."""
    baseline, texts = made.experiment.rows[0], {}
    for name in made.data:
        config = made.records[baseline.label, name][0].config
        trainer, optimizer, model = config["trainer"], config["optimizer"], config["model"]
        stem = f", {model['stem']} stem" if model["stem"] else ""
        texts[name] = (
            f"{trainer['epochs']} epochs, batch {trainer['batch_size']}, {optimizer['name']} with learning rate "
            f"{optimizer['lr']:g}, width {model['width']}{stem}"
        )
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _notes(made: Made, settings: Settings) -> list[str]:
    rates = ", ".join(f"{name} {100 * data.majority_rate():.1f} %" for name, data in made.data.items())
    protocols = " and ".join(dict.fromkeys(data.protocol for data in made.data.values()))
    seeds = ", ".join(map(str, settings.seeds))
    what = f"Scale {settings.scale}: {_what_was_set(made)}, seeds {seeds}, {protocols} protocol."
    notes = [
        f"Majority rate: {rates}.",
        what,
        "Ours: test accuracy in the epoch selected on validation, mean ± sample standard deviation over seeds.",
    ]
    if settings.scale == "small":
        notes.append(
            "Gain over the row's baseline, with its 95 % interval for the fused accuracy (paired bootstrap "
            "over seeds and test samples; three seeds make it rather too narrow)."
        )
        notes.append(
            "This shows that the pipeline runs; the paper's numbers are of other data and models, so only the sign and "
            "order of the gains can be compared."
        )
        if short := [row.label for row in made.experiment.rows if row.method in _TIMES]:
            notes.append(
                f"Warm-ups, active epochs and resets of {', '.join(short)} are as large a share of the epochs as their "
                f"defaults are of {SCALES['paper'].epochs}."
            )
    if any("ReconBoost" in row.method for row in made.experiment.rows):
        notes.append(
            "ReconBoost has fewer epochs, of several passes over the data each, for nearly the same data passes."
        )
    if failed := sum(record.state == "failed" for some in made.records.values() for record in some):
        notes.append(f"{failed} runs failed and are left out of the means.")
    return [*notes, *([made.experiment.remark] if made.experiment.remark else [])]


def _surface(
    experiment: Experiment,
    data: Mapping[str, MultimodalData],
    settings: Settings,
    folder: Path,
    engine: Engine | None,
    say: Callable[[str], None] | None,
) -> Drawn:
    """Validation accuracy over α and β, with the first of the seeds; its trials stay apart from the runs."""
    drawn = Drawn()
    for name, one in data.items():
        model, optimizer, trainer = _options(settings, one)
        found = tune(
            one, ["BMLR"], [GRID[settings.scale]], Search(sampler="grid"), seeds=settings.seeds[:1], model=model,
            optimizer=optimizer, trainer=trainer, out=folder / f"fig5-{name}", engine=engine, say=say,
        )  # fmt: skip
        drawn.files += found.files
        caption = f"{experiment.title} on {name}, seed {settings.seeds[0]}."
        drawn.pictures += [Picture(file, caption) for file in found.files if file.suffix == ".png"]
    return drawn
