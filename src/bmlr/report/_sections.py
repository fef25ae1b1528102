"""Sorts runs into sections of the same data, and in them by method and setting."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import bmlr.methods
from bmlr.runs import ExcludedRun, FinishedRun

#: Where the files are, which does not make other data.
_PLACES = {"root", "cache"}
#: What cannot change a result.
_IDLE = {"trainer.progress", "trainer.num_workers"}


@dataclasses.dataclass(frozen=True)
class MethodGroup:
    """The runs of one method with one setting, which differ in the seed.

    Attributes:
        label: Name in the literature, with what tells it from another setting of the same method.
        parameters: The method's parameters that are not its defaults, as text.
        search: What the filter looks in.
        runs: The runs, by seed.
    """

    label: str
    parameters: str
    search: str
    runs: tuple[FinishedRun, ...]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.result["seed"] for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Section:
    """The runs on the same data under the same protocol.

    Attributes:
        heading: Data and protocol.
        facts: What was compared, text by name.
        notes: What a reader has to know before comparing numbers.
        modalities: Names of the modalities.
        pairs: Names of the ratios.
        groups: The methods.
        majority: Accuracy of always answering the most frequent class of the test split.
    """

    heading: str
    facts: Mapping[str, str]
    notes: Sequence[str]
    modalities: Sequence[str]
    pairs: Sequence[str]
    groups: Sequence[MethodGroup]
    majority: float


def make_sections(runs: Iterable[FinishedRun]) -> tuple[list[Section], list[ExcludedRun]]:
    """Sort runs into sections; a run that repeats another (same settings, data and seed) is left out and returned."""
    by_data: dict[str, list[FinishedRun]] = {}
    repeated = []
    first: dict[str, FinishedRun] = {}
    for run in runs:
        key = _key(_data_settings(run), _settings(run), run.result["seed"])
        if key in first:
            reason = f"It has the settings and the seed of {first[key].directory}, which is counted."
            repeated.append(ExcludedRun(run.directory, "repeated", reason))
            continue
        first[key] = run
        by_data.setdefault(_key(_data_settings(run)), []).append(run)
    sections = [_make_section(members) for members in by_data.values()]
    return _tell_apart(sections, list(by_data.values())), repeated


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds, as text."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def methods_text(groups: Sequence[MethodGroup]) -> str:
    """How many methods there are, and in how many settings where some have several."""
    methods, settings = len({_class(group.runs[0]) for group in groups}), len({group.label for group in groups})
    return _counted(methods, "method") + (f" in {settings} settings" if settings > methods else "")


def _make_section(runs: list[FinishedRun]) -> Section:
    groups = _make_groups(runs)
    first = runs[0].result
    modalities = list(dict.fromkeys(name for run in runs for name in run.result["test"]["unimodal_accuracy"]))
    pairs = list(dict.fromkeys(name for run in runs for name in run.result["test"]["ratio"]))
    samples = first["samples"]
    data = runs[0].config["data"].get("init_args") or {}
    shared, different = _compare(groups)
    facts = {
        "Data": f"{first['data']}{_in_brackets({k: v for k, v in data.items() if k not in _PLACES | {'protocol'}})}",
        "Protocol": f"{first['protocol']}{_PROTOCOLS.get(first['protocol'], '')}",
        "Samples": f"{samples['train']} training, {samples['val']} validation, {samples['test']} test",
        "Majority rate": f"{100 * first['majority_rate']:.1f} % of the test split is of the most frequent class",
        "Modalities": ", ".join(modalities),
        "Methods and runs": f"{methods_text(groups)}, {_counted(len(runs), 'run')}",
        "Shared settings": ", ".join(f"{key} {value}" for key, value in shared.items()) or "none",
        "Versions": _versions(runs),
    }
    return Section(
        heading=f"{first['data']}, {first['protocol']} protocol",
        facts=facts,
        notes=_notes(runs, groups, different),
        modalities=modalities,
        pairs=pairs,
        groups=groups,
        majority=first["majority_rate"],
    )


_PROTOCOLS = {
    "clean": ": splits share no group, the epoch is selected on validation, the test split is read once",
    "paper": ": the published split, the test split scored after every epoch",
}


def _make_groups(runs: list[FinishedRun]) -> list[MethodGroup]:
    settings: dict[str, list[FinishedRun]] = {}
    for run in runs:
        settings.setdefault(_key(_settings(run)), []).append(run)
    members = [sorted(group, key=lambda run: int(run.result["seed"])) for group in settings.values()]
    order = {name: place for place, name in enumerate(bmlr.methods.available())}
    groups = []
    for group in members:
        first = group[0]
        name = first.result["method"]
        same = [other[0] for other in members if other[0].config["method"]["class_path"] == _class(first)]
        title = bmlr.methods.get(name).info.title if name in order else name
        label = title + _in_brackets(_telling(first, same))
        given = first.config["method"].get("init_args") or {}
        usual = bmlr.methods.create(name).hparams if name in order else {}
        changed = {key: value for key, value in given.items() if key not in usual or _key(usual[key]) != _key(value)}
        groups.append(
            MethodGroup(
                label=label,
                parameters=", ".join(f"{key}={_short(value)}" for key, value in changed.items()),
                search=f"{label} {name}".casefold(),
                runs=tuple(group),
            )
        )
    # Settings of a method by their text; methods that are not known last, as they came.
    known = {group.label: order.get(str(group.runs[0].result["method"]), len(order)) for group in groups}
    return sorted(groups, key=lambda one: (known[one.label], one.label if known[one.label] < len(order) else ""))


def _telling(run: FinishedRun, same: list[FinishedRun]) -> dict[str, Any]:
    """The settings of a run that differ among the settings of the same method."""
    flat = [_flatten(_settings(other)) for other in same]
    mine = _flatten(_settings(run))
    keys = [
        key
        for key in dict.fromkeys(key for other in flat for key in other)
        if len({_key(o.get(key)) for o in flat}) > 1 and key != "model.modalities"
    ]
    telling = {key.removeprefix("method.init_args."): mine.get(key, "not recorded") for key in keys}
    # Always said: a method on fewer modalities must not pass for the method itself where that has no run.
    if modalities := mine.get("model.modalities"):
        telling["modalities"] = "+".join(modalities)
    return telling


def _compare(groups: Sequence[MethodGroup]) -> tuple[dict[str, str], list[str]]:
    """What model, optimiser and trainer have in common, in few words, and a sentence for each entry that differs."""
    flat = {
        group.label: {k: v for k, v in _settings(group.runs[0]).items() if not k.startswith("method.")}
        for group in groups
    }
    shared, different = {}, []
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = _by_value({label: _short(settings.get(key, "not recorded")) for label, settings in flat.items()})
        if len(values) == 1:
            shared[key] = next(iter(values))
        elif key != "bmlr":  # versions have a sentence of their own
            different.append(f"The methods differ in {key}: {_listed(values)}.")
    return {name: shared[key] for key, name in _SHOWN.items() if shared.get(key, "null") != "null"}, different


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """The labels that have each value."""
    found: dict[str, list[str]] = {}
    for label, value in values.items():
        found.setdefault(value, []).append(label)
    return found


def _listed(values: Mapping[str, list[str]]) -> str:
    """Values with who has them, by name if they are few."""
    return "; ".join(
        f"{value} ({', '.join(labels) if len(labels) <= 4 else f'{len(labels)} methods'})"
        for value, labels in values.items()
    )


_SHOWN = {
    "trainer.epochs": "epochs", "trainer.batch_size": "batch size", "optimizer.name": "optimiser",
    "optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay", "optimizer.schedule": "schedule",
    "model.fusion": "fusion", "model.width": "width", "trainer.precision": "precision",
}  # fmt: skip


def _notes(runs: list[FinishedRun], groups: list[MethodGroup], different: list[str]) -> list[str]:
    notes = list(different)
    seeds = _by_value({group.label: seeds_text(group.seeds) for group in groups})
    if len(seeds) > 1:
        notes.append(
            f"The methods do not have the same seeds, so their means are not of the same draws: {_listed(seeds)}."
        )
    if max(len(group.runs) for group in groups) == 1:
        notes.append("Every method has one run: how much results vary with the seed is not known.")
    if len({_key(run.result.get("versions")) for run in runs}) > 1:
        notes.append("The runs were made with different versions or on different machines (see each run's details).")
    return notes + [run.remark for run in runs if run.remark]


def _versions(runs: list[FinishedRun]) -> str:
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in (run.result.get("versions") or {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return ", ".join(f"{name} {' or '.join(versions)}" for name, versions in found.items()) or "not recorded"


def _tell_apart(sections: list[Section], runs: list[list[FinishedRun]]) -> list[Section]:
    """Add what differs to the headings of sections of the same data and protocol."""
    result = []
    for section, members in zip(sections, runs, strict=True):
        same = [other[0] for s, other in zip(sections, runs, strict=True) if s.heading == section.heading]
        flat = [_flatten(_data_settings(run)) for run in same]
        mine = _flatten(_data_settings(members[0]))
        keys = [key for key in mine if len({_key(other.get(key)) for other in flat}) > 1]
        told = {key.rpartition(".")[2]: mine[key] for key in keys}
        result.append(dataclasses.replace(section, heading=section.heading + _in_brackets(told)))
    return result


def _data_settings(run: FinishedRun) -> dict[str, Any]:
    """What makes two runs' data the same: the data set, its parameters but for places, and what was counted in it."""
    entry = run.config["data"]
    given = {key: value for key, value in (entry.get("init_args") or {}).items() if key not in _PLACES}
    result = run.result
    return {
        "class": entry["class_path"],
        "name": result["data"],
        "protocol": result["protocol"],
        "init_args": given,
        "samples": result["samples"],
        "majority_rate": round(result["majority_rate"], 6),
    }


def _settings(run: FinishedRun) -> dict[str, Any]:
    """What makes two runs the same but for the seed."""
    config = {key: value for key, value in run.config.items() if key not in {"data", "seed"}}
    flat = {key: value for key, value in _flatten(config).items() if key not in _IDLE}
    return {**flat, "bmlr": (run.result.get("versions") or {}).get("bmlr")}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _class(run: FinishedRun) -> str:
    return str(run.config["method"]["class_path"])


def _key(*content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False).replace('"', "")


def _in_brackets(entries: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key}={_short(value)}' for key, value in entries.items())})" if entries else ""
