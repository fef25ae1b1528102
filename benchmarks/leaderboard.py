"""Tune and compare all methods on all data sets of a file, and write the tables.

    python benchmarks/leaderboard.py benchmarks/leaderboard.yaml --out leaderboard --processes 2

Every method of every data set is tuned with the same number of trials on validation, then trained with all seeds. Stop
it as you like; the same command goes on. ``--dry-run`` says which runs there would be and how long they take,
``--only`` and ``--methods`` make a part. Of a complete data set a small file is kept in the folder ``--keep``; all
tables are made from such files, so that ``--tables`` needs no runs.

A set with ``factors`` stands for one set per combination of their levels.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from leaderboard_kept import LR, keep, read_folder

import bmlr.data
from bmlr._files import atomic_write_text
from bmlr.benchmark import Search, tune
from bmlr.benchmark.engines import LocalEngine
from bmlr.benchmark.grid import Job, make_jobs, run_grid
from bmlr.benchmark.plans import make_plan
from bmlr.benchmark.specification import parse_method, scaled_method
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.runs import RunRecord, read_run
from bmlr.tables import Cell, Table, format_duration


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        label: Its name in tables.
        text: Its specification, with epochs and warm-ups of the data set's length.
    """

    label: str
    text: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of a campaign.

    Attributes:
        name: Its name, and that of its folder.
        entry: Its entry in the file.
        levels: Levels of its factors, by factor.
    """

    name: str
    entry: Mapping[str, Any]
    levels: Mapping[str, str]

    @functools.cached_property
    def data(self) -> MultimodalData:
        """The data."""
        return bmlr.data.create(self.entry["data"], **self.entry.get("parameters", {}))

    @property
    def options(self) -> dict[str, Any]:
        """Options of model, optimiser and trainer."""
        quiet = {"accelerator": "cpu", "progress": False, **self.entry.get("trainer", {})}
        return {
            "model": ModelOptions(**self.entry.get("model", {})),
            "optimizer": OptimizerOptions(**self.entry.get("optimizer", {})),
            "trainer": TrainerOptions(**quiet),
        }

    @property
    def epochs(self) -> int:
        """Epochs of a method with one pass over the data in each."""
        return int(self.entry.get("trainer", {}).get("epochs") or self.data.defaults.epochs)


class Campaign:
    """Runs of a file.

    Args:
        content: Content of the file.
        out: Folder of runs and tables.
        engine: Engine of the runs.
    """

    def __init__(self, content: Mapping[str, Any], out: Path, engine: Any) -> None:
        self.content, self.out, self.engine = content, out, engine
        self.seeds = [int(seed) for seed in content["seeds"]]
        self.tuning: Mapping[str, Any] = content.get("tuning") or {}
        self.sets = [made for name, entry in content["sets"].items() for made in expand(name, entry)]
        self.chosen: Sequence[str] | None = None
        self.file = Path("leaderboard.yaml")

    def command(self, data_set: DataSet) -> str:
        """The command that makes a data set."""
        return f"python benchmarks/leaderboard.py {self.file} --only {data_set.name}"

    def rows(self, data_set: DataSet) -> list[Row]:
        """All rows of a data set, in the order of the file."""
        rows = []
        for text, entry in self.content["methods"].items():
            if text == "Unimodal":
                names = [f"Unimodal:modality={name}" for name in data_set.data.modalities]
                rows += [Row(name, name) for name in names]
            else:
                rows.append(Row(text, self._specification(text, entry or {}, data_set)))
        return rows

    def _specification(self, text: str, entry: Mapping[str, float], data_set: DataSet) -> str:
        epochs, of = data_set.epochs, self.content.get("epochs_of_defaults")
        if ":" in text:
            return parse_method(text).text
        passes = entry.get("passes", 1) * entry.get("passes_per_modality", 0) * len(data_set.data.modalities)
        passes = passes or entry.get("passes", 1)
        plain = scaled_method(text, epochs, of=of)
        return plain if passes == 1 else f"{plain.partition('@')[0]}@{max(1, round(epochs / passes))}"

    def chosen_rows(self, data_set: DataSet) -> list[Row]:
        """The rows to be made: those that ``--methods`` names."""
        rows = self.rows(data_set)
        if self.chosen is None:
            return rows
        return [row for row in rows if {row.label, row.label.partition(":")[0]} & set(self.chosen)]

    def tuning_of(self, data_set: DataSet) -> Mapping[str, Any]:
        """The search of a data set: that of the file, with what its entry says of its own."""
        return {**self.tuning, **data_set.entry.get("tuning", {})}

    def spaces(self, data_set: DataSet, rows: Sequence[Row]) -> list[str]:
        """Spaces of the search. The learning rate is first in all, so that the trials of all methods share it."""
        tuning = self.tuning_of(data_set)
        rate, own = f"{LR}={tuning['lr']}", tuning.get("spaces") or {}
        of_rows = {row.text: own.get(row.label) for row in rows}
        return [f"{text}:{rate}{f',{space}' if space else ''}" for text, space in of_rows.items()]

    def folder(self, data_set: DataSet) -> Path:
        """Folder of a data set."""
        return self.out / data_set.name

    def runs(self, data_set: DataSet) -> Path:
        """Folder of the runs that are results."""
        return self.folder(data_set) / "runs"

    def search(self, data_set: DataSet, rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
        """The tuned values of each row by its text; trials that are missing are made."""
        tuning = self.tuning_of(data_set)
        if not tuning:
            return {}
        found = tune(
            data_set.data,
            [row.text for row in rows],
            self.spaces(data_set, rows),
            Search(tuning["trials"], defaults_first=True),
            seeds=tuning["seeds"],
            out=self.folder(data_set) / "tuning",
            engine=self.engine,
            **data_set.options,
        )
        return dict(found.best)

    def jobs(self, data_set: DataSet, rows: Sequence[Row], tuned: Mapping[str, Mapping[str, Any]]) -> list[Job]:
        """The runs that are results, labelled by their rows."""
        labels = {row.text: row.label for row in rows}
        texts = [row.text for row in rows]
        made = make_jobs(data_set.data, texts, self.seeds, tuned=tuned, **data_set.options)
        return [dataclasses.replace(job, label=labels[job.label]) for job in made]

    def make(self, data_set: DataSet) -> None:
        """Tune and train the chosen rows, and note the parameters that were found."""
        rows = self.chosen_rows(data_set)
        tuned = self.search(data_set, rows)
        jobs = self.jobs(data_set, rows, tuned)
        records = run_grid(jobs, self.runs(data_set), self.engine)
        listing = self.folder(data_set) / "rows.json"
        listed = json.loads(listing.read_text()) if listing.is_file() else {}
        for row in rows:
            of_row = [record.directory.name for record in records if record.label == row.label]
            listed[row.label] = {"tuned": dict(tuned.get(row.text, {})), "runs": of_row, "method": row.text}
        atomic_write_text(listing, json.dumps(listed, indent=1) + "\n")

    def records(self, data_set: DataSet) -> dict[str, list[RunRecord]]:
        """Runs of the rows that have ended, by label, in the order of the file."""
        listed = json.loads((self.folder(data_set) / "rows.json").read_text())
        runs = self.runs(data_set)
        return {
            row.label: [read_run(runs / name, row.label) for name in listed[row.label]["runs"]]
            for row in self.rows(data_set)
            if row.label in listed
        }

    def tuned_values(self, data_set: DataSet) -> dict[str, Mapping[str, Any]]:
        """Parameters that were found, by label."""
        listed = json.loads((self.folder(data_set) / "rows.json").read_text())
        return {label: entry["tuned"] for label, entry in listed.items()}

    def is_complete(self, data_set: DataSet) -> bool:
        """Whether all runs of all rows have ended."""
        if not (self.folder(data_set) / "rows.json").is_file():
            return False
        records = self.records(data_set)
        ended = {label for label, runs in records.items() if all(run.result or run.failure for run in runs)}
        return {row.label for row in self.rows(data_set)} <= ended

    def plan(self, sets: Sequence[DataSet]) -> Table:
        """Runs of each data set and about how long they take, from a few steps of each method."""
        rows, total = [], 0.0
        for data_set in sets:
            methods = self.chosen_rows(data_set)
            jobs = make_jobs(data_set.data, [row.text for row in methods], self.seeds[:1], **data_set.options)
            plan = make_plan(jobs, self.folder(data_set) / "plan", self.engine)
            known = [cost.seconds for cost in plan.costs() if cost]
            tuning = self.tuning_of(data_set)
            trials = int(tuning.get("trials", 0)) * len(tuning.get("seeds", ()))
            runs = len(methods) * (trials + len(self.seeds))
            seconds = sum(known) * (trials + len(self.seeds)) / getattr(self.engine, "processes", 1)
            total += seconds
            made = sum(1 for _ in self.folder(data_set).glob("**/result.json"))
            cells = (data_set.name, data_set.epochs, len(methods), runs, made, format_duration(seconds))
            rows.append([Cell(str(cell)) for cell in cells])
        notes = [f"All: about {format_duration(total)}, as a few steps of each method on this machine tell."]
        return Table(["data set", "epochs", "rows", "runs", "finished before", "time"], rows, notes)


def expand(name: str, entry: Mapping[str, Any]) -> Iterator[DataSet]:
    """The data sets of an entry: itself, or one for each combination of its factors' levels."""
    factors: Mapping[str, Mapping[str, Any]] = entry.get("factors") or {}
    for levels in itertools.product(*(levels.items() for levels in factors.values())):
        merged = {key: value for key, value in entry.items() if key != "factors"}
        for _, change in levels:
            for section, values in change.items():
                merged[section] = {**merged.get(section, {}), **values}
        chosen = {factor: str(level) for factor, (level, _) in zip(factors, levels, strict=True)}
        suffix = "".join(f"-{factor}-{level}".replace(" ", "") for factor, level in chosen.items())
        yield DataSet(name + suffix, merged, chosen)


def main(arguments: Sequence[str] | None = None, engine: Any = None) -> int:
    """Make the campaign and write its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="data sets, methods and their search, as YAML")
    parser.add_argument("--out", type=Path, default=Path("leaderboard"), help="folder of runs and tables")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", metavar="SET", help="data sets, by name or beginning of the name")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="rows, by label or name of the method")
    parser.add_argument("--keep", type=Path, help="folder of the files of complete data sets; default: kept in OUT")
    parser.add_argument("--dry-run", action="store_true", help="say which runs there would be, and start nothing")
    parser.add_argument("--tables", action="store_true", help="make no runs, only tables of the files kept")
    options = parser.parse_args(arguments)
    content = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    from leaderboard_tables import write_tables

    for module in content.get("imports", ()):  # a run trains encoders of modules that are imported
        importlib.import_module(module)
    campaign = Campaign(content, options.out, engine or LocalEngine(options.processes))
    campaign.chosen, campaign.file = options.methods, options.file
    kept = options.keep or options.out / "kept"
    sets = [entry for entry in campaign.sets if options.only is None or any(map(entry.name.startswith, options.only))]
    if not options.tables:
        available = list(_available(sets))
        if options.dry_run:
            print(campaign.plan(available).markdown())
            return 0
        for data_set in available:
            print(f"-- {data_set.name}", file=sys.stderr, flush=True)
            campaign.make(data_set)
            if campaign.is_complete(data_set):
                print(keep(campaign, data_set, kept))
    for path in write_tables(read_folder(kept, [entry.name for entry in campaign.sets]), campaign, options.out):
        print(path)
    return 0


def _available(sets: Sequence[DataSet]) -> Iterator[DataSet]:
    """The data sets whose files are there; others are named."""
    for data_set in sets:
        try:
            data_set.data.prepare()
        except FileNotFoundError as error:
            print(f"{data_set.name} is left out: {error}", file=sys.stderr)
        else:
            yield data_set


if __name__ == "__main__":
    sys.exit(main())
