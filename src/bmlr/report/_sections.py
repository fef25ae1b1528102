"""Runs by section (data and protocol) and method."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bmlr.methods
from bmlr.runs import DirectoryLock, RunRecord, group_runs, metric_names, primary_score
from bmlr.runs.settings import data_settings, method_settings, settings, settings_key, software_version, text_of
from bmlr.tables import format_count
from bmlr.tasks import MetricForm, metric_form

# Marks of direction, and characters that are written from right to left. No set: it would read as names of methods.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "R", "AL")


@dataclasses.dataclass(frozen=True)
class ExcludedRun:
    """Run or folder left out of the report's numbers.

    Attributes:
        directory: Its directory.
        state: running, stopped, failed, unreadable, repeated or no run.
        reason: One sentence.
        details: Traceback of a failed run, or the end of its log, or "".
        method: Its method and seed, or "".
        epochs: Epochs that are done, of those planned, or "".
        validation: Validation score of the last of them, as text.
    """

    directory: Path
    state: str
    reason: str
    details: str = ""
    method: str = ""
    epochs: str = ""
    validation: str = "–"

    @property
    def is_begun(self) -> bool:
        """Whether it is a run without a result."""
        return self.state in {"running", "stopped", "failed"}


@dataclasses.dataclass(frozen=True)
class MethodGroup:
    """The runs of one method with one setting: its seeds.

    Attributes:
        label: Name of the method, with the settings that differ among groups of the same method.
        parameters: The method's parameters that are not its defaults and not in its label, as text.
        search: Text that the filter searches.
        runs: The runs, by seed.
    """

    label: str
    parameters: str
    search: str
    runs: tuple[RunRecord, ...]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [record.config["seed"] for record in self.runs]


@dataclasses.dataclass(frozen=True)
class Section:
    """The runs on the same data under the same protocol.

    Attributes:
        heading: Data and protocol.
        facts: Text about data, runs and shared settings, by name.
        notes: Caveats of the numbers.
        modalities: Names of the modalities.
        pairs: Names of the ratios.
        groups: The methods.
        form: Primary metric.
        metrics: Names of all metrics, the primary one first.
        constant: Score of the best constant prediction on the test split, of classes the majority rate.
    """

    heading: str
    facts: Mapping[str, str]
    notes: Sequence[str]
    modalities: Sequence[str]
    pairs: Sequence[str]
    groups: Sequence[MethodGroup]
    form: MetricForm
    metrics: Sequence[str]
    constant: float


def exclude_run(record: RunRecord) -> ExcludedRun:
    """Excluded entry of a run without a result."""
    if record.state not in {"unfinished", "failed"}:
        return ExcludedRun(record.directory, record.state, record.reason, record.details)
    config, metrics = record.config, record.metrics
    planned = (config.get("trainer") or {}).get("epochs")
    done = 0 if metrics is None else len(metrics)
    epochs = f"{done} of {planned}" if planned else str(done)
    state, reason = "failed" if record.state == "failed" else "stopped", record.reason
    if state == "stopped" and _is_running(record.directory):
        state, reason = "running", f"{epochs} epochs are done."
    name = str((config.get("method") or {}).get("class_path", "")).rpartition(".")[2]
    # The primary metric is the first of the table.
    scores = [] if metrics is None else [column for column in map(str, metrics) if column.startswith("val_")]
    metric = (config.get("trainer") or {}).get("monitor") or next(iter(scores), "val_").removeprefix("val_")
    shown = "–"
    if metrics is not None and f"val_{metric}" in scores:
        shown = metric_form(metric).text(float(metrics[f"val_{metric}"].iloc[-1]))
    return ExcludedRun(
        record.directory, state, reason, record.details, f"{name}, seed {config.get('seed')}" if name else "", epochs,
        shown,
    )  # fmt: skip


def _is_running(directory: Path) -> bool:
    try:
        return DirectoryLock(directory).held_elsewhere()
    except OSError:  # a folder that cannot be written to
        return False


def make_sections(runs: Iterable[RunRecord]) -> tuple[list[Section], list[ExcludedRun]]:
    """Sort finished runs into sections.

    Repetitions of a run, with the same data, settings and seed, are excluded.
    """
    by_data: dict[str, list[RunRecord]] = {}
    repeated = []
    first: dict[str, RunRecord] = {}
    for record in runs:
        data = data_settings(record)
        key = settings_key(data, settings(record), software_version(record), record.config["seed"])
        if key in first:
            reason = f"It has the settings and the seed of {first[key].directory}, which is counted."
            repeated.append(ExcludedRun(record.directory, "repeated", reason))
            continue
        first[key] = record
        by_data.setdefault(settings_key(data), []).append(record)
    sections = [_make_section(records) for records in by_data.values()]
    return _tell_apart(sections, [records[0] for records in by_data.values()]), repeated


def isolate(name: str) -> str:
    """Isolate the direction of a name within a sentence.

    Marks of direction in it would else reverse the words that follow.
    """
    marked = any(unicodedata.bidirectional(character) in _DIRECTIONS for character in name)
    return f"\u2068{name}\u2069" if marked else name


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds, as text."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def methods_text(groups: Sequence[MethodGroup]) -> str:
    """Numbers of methods and of their settings, as text."""
    methods, settings = len({_class(group.runs[0]) for group in groups}), len({group.label for group in groups})
    return format_count(methods, "method") + (f" in {settings} settings" if settings > methods else "")


def _make_section(runs: list[RunRecord]) -> Section:
    groups = _make_groups(runs)
    results = [record.finished_result for record in runs]
    first = results[0]
    metric = str(first["metric"])
    form = metric_form(metric)
    modalities = list(dict.fromkeys(name for result in results for name in primary_score(result["test"], metric)[1]))
    pairs = list(dict.fromkeys(name for result in results for name in result["test"]["ratio"]))
    samples = first["samples"]
    parameters = {
        key.removeprefix("init_args."): value
        for key, value in data_settings(runs[0]).items()
        if key.startswith("init_args.")
    }
    shared, different = _compare_settings(groups)
    facts = {
        "Data": f"{isolate(first['data'])}{_in_brackets(parameters)}",
        "Protocol": f"{first['protocol']}{_PROTOCOLS.get(first['protocol'], '')}",
        "Samples": f"{samples['train']} training, {samples['val']} validation, {samples['test']} test",
        **_constant_fact(form, first["constant_score"]),
        "Modalities": ", ".join(modalities),
        "Methods and runs": f"{methods_text(groups)}, {format_count(len(runs), 'run')}",
        "Shared settings": ", ".join(f"{key} {value}" for key, value in shared.items()) or "none",
        "Versions": _versions(results),
    }
    return Section(
        heading=f"{isolate(first['data'])}, {first['protocol']} protocol",
        facts=facts,
        notes=_notes(runs, groups, different),
        modalities=modalities,
        pairs=pairs,
        groups=groups,
        form=form,
        metrics=tuple(dict.fromkeys([metric, *(name for result in results for name in metric_names(result["test"]))])),
        constant=first["constant_score"],
    )


def _constant_fact(form: MetricForm, value: float) -> dict[str, str]:
    """What a constant prediction scores."""
    if form.name == "accuracy":
        return {"Majority rate": f"{form.text(value)} of the test split is of the most frequent class"}
    return {"Constant prediction": f"{form.title} {form.text(value)}"}


_PROTOCOLS = {
    "clean": ": splits share no group, the epoch is selected on validation, the test split is read once",
    "paper": ": the published split, the test split scored after every epoch",
}


def _make_groups(runs: list[RunRecord]) -> list[MethodGroup]:
    groups = []
    for label, records in group_runs(runs).items():
        name = str(records[0].finished_result["method"])
        parameters = records[0].config["method"].get("init_args") or {}
        defaults = bmlr.methods.create(name).hparams if name in bmlr.methods.available() else {}
        changed = {
            k: v for k, v in parameters.items() if k not in defaults or settings_key(defaults[k]) != settings_key(v)
        }
        texts = [f"{key}={text_of(value)}" for key, value in changed.items()]
        groups.append(
            MethodGroup(
                label=label,
                parameters=", ".join(text for text in texts if text not in label.partition(":")[2].split(",")),
                search=f"{label} {name}".casefold(),
                runs=tuple(records),
            )
        )
    return groups


def _compare_settings(groups: Sequence[MethodGroup]) -> tuple[dict[str, str], list[str]]:
    """Main shared settings, and a sentence per differing one.

    They are settings of model, optimiser and trainer.
    """
    flat = {
        group.label: {k: v for k, v in method_settings(group.runs[0]).items() if not k.startswith("method.")}
        for group in groups
    }
    shared, different = {}, []
    for key in dict.fromkeys(key for entries in flat.values() for key in entries):
        values = _by_value({label: text_of(entries.get(key, "not recorded")) for label, entries in flat.items()})
        if len(values) == 1:
            shared[key] = next(iter(values))
        else:
            different.append(f"The methods differ in {key}: {_listed(values)}.")
    return {name: shared[key] for key, name in _SHOWN.items() if shared.get(key, "null") != "null"}, different


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels by value."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    return labels


def _listed(values: Mapping[str, list[str]]) -> str:
    """Text of the values with their labels, or many labels' number."""
    return "; ".join(
        f"{value} ({', '.join(labels) if len(labels) <= 4 else f'{len(labels)} methods'})"
        for value, labels in values.items()
    )


_SHOWN = {
    "trainer.epochs": "epochs", "trainer.batch_size": "batch size", "optimizer.name": "optimiser",
    "optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay", "optimizer.schedule": "schedule",
    "model.fusion": "fusion", "model.width": "width", "trainer.precision": "precision",
}  # fmt: skip


def _notes(runs: list[RunRecord], groups: list[MethodGroup], different: list[str]) -> list[str]:
    notes = list(different)
    seeds = _by_value({group.label: seeds_text(group.seeds) for group in groups})
    if len(seeds) > 1:
        notes.append(
            f"The methods do not have the same seeds, so their means are not of the same draws: {_listed(seeds)}."
        )
    if len({settings_key(record.finished_result.get("versions")) for record in runs}) > 1:
        notes.append("The runs were made with different versions or on different machines (see each run's details).")
    return notes + [record.metrics_problem for record in runs if record.metrics_problem]


def _versions(results: Iterable[Mapping[str, Any]]) -> str:
    versions: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in (result.get("versions") or {}).items():
            versions.setdefault(str(name), {})[str(version)] = None
    return ", ".join(f"{name} {' or '.join(values)}" for name, values in versions.items()) or "not recorded"


def _tell_apart(sections: list[Section], runs: list[RunRecord]) -> list[Section]:
    """Add differing data settings to equal headings.

    Args:
        sections: The sections.
        runs: One run of each section.
    """
    result = []
    for section, record in zip(sections, runs, strict=True):
        same = [data_settings(r) for s, r in zip(sections, runs, strict=True) if s.heading == section.heading]
        different = {
            key.removeprefix("init_args."): value
            for key, value in data_settings(record).items()
            if len({settings_key(settings.get(key)) for settings in same}) > 1
        }
        result.append(dataclasses.replace(section, heading=section.heading + _in_brackets(different)))
    return result


def _class(record: RunRecord) -> str:
    return str(record.config["method"]["class_path"])


def _in_brackets(entries: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key}={text_of(value)}' for key, value in entries.items())})" if entries else ""
