"""Settings that decide a result, and runs grouped by them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import bmlr.methods
from bmlr.config import TrainerOptions, resolve_class
from bmlr.data import MultimodalData
from bmlr.runs._records import RunRecord

#: Settings that only a finished run names: version of the package, and content of the data.
_ORIGIN = ("bmlr", "data.content")


def group_runs(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group the seeds of each configuration, by label.

    Runs with a label are grouped by it, in the order given. The others are grouped by all settings that can change a
    result, in the order of the methods' registry, and labelled by their method with the settings that tell its groups
    apart, as ``BMLR:beta=0.5@20``.

    Returns:
        Runs by label, those of a group in the order of their seeds. The records carry the label. Folders without a run,
        and failed runs without a configuration, are left out.

    Raises:
        ValueError: If a run is unreadable; the message names its file and the remedy.
    """
    labelled: dict[str, list[RunRecord]] = {}
    unlabelled = []
    for record in records:
        if record.state == "unreadable":
            raise ValueError(record.reason)
        if record.label:
            labelled.setdefault(record.label, []).append(record)
        elif record.config:
            unlabelled.append(record)
    groups = _groups_of_settings(unlabelled)
    flat = [{**settings(members[0]), **_origin_settings(members)} for members in groups]
    labels = [_label(group, flat) for group in flat]
    order = {name: position for position, name in enumerate(bmlr.methods.available())}
    ranks = [(order.get(_class_name(group), len(order)), label) for group, label in zip(flat, labels, strict=True)]
    for _, label, members in sorted(zip(ranks, labels, groups, strict=True), key=lambda item: item[0]):
        labelled.setdefault(label, []).extend(dataclasses.replace(record, label=label) for record in members)
    return labelled


def settings(record: RunRecord) -> dict[str, Any]:
    """Settings that can change a result, by dotted path.

    The seed, locations of the data, and options of the trainer without an effect on the result are left out.
    """
    data = {"class_path": record.config["data"]["class_path"], "init_args": _data_parameters(record)}
    return {**method_settings(record), **_flatten({"data": data})}


def method_settings(record: RunRecord) -> dict[str, Any]:
    """Settings of method, model, optimiser and trainer, by dotted path."""
    sections = {name: record.config.get(name) or {} for name in ("method", "model", "optimizer", "trainer")}
    # The first weights of a finished model are its seed's: runs that differ in them are seeds of one configuration.
    model = {name: value for name, value in sections["model"].items() if name != "weights"}
    if encoders := model.get("encoders"):  # of a checkpoint its identity says all
        model["encoders"] = {
            name: {**part, "checkpoint": part["checkpoint"]["id"]} if "checkpoint" in part else part
            for name, part in encoders.items()
        }
    sections["model"] = model
    return _flatten({**sections, "trainer": TrainerOptions.affecting_result(sections["trainer"])})


def data_settings(record: RunRecord) -> dict[str, Any]:
    """Settings and sizes of the data of a finished run, by name.

    They are equal for runs on the same data.
    """
    result = record.finished_result
    parameters = {key: value for key, value in _data_parameters(record).items() if key != "protocol"}
    return _flatten(
        {
            "data": record.config["data"]["class_path"],
            "protocol": result["protocol"],
            "init_args": parameters,
            "samples": result["samples"],
            "content": result.get("data_content"),
            "metric": result["metric"],
            "score of a constant prediction": round(float(result["constant_score"]), 6),
        }
    )


def software_version(record: RunRecord) -> str | None:
    """Version of the package that made a finished run."""
    return ((record.result or {}).get("versions") or {}).get("bmlr")


def text_of(value: Any) -> str:
    """Text of a setting, as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False).replace('"', "")


def settings_key(*content: Any) -> str:
    """Text that is equal for equal settings."""
    return json.dumps(content, sort_keys=True, default=str)


def _groups_of_settings(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group runs of equal settings, version and data, each group by seed.

    Unfinished runs name neither version nor data and join the first group.
    """
    by_settings: dict[str, list[RunRecord]] = {}
    for record in records:
        by_settings.setdefault(settings_key(settings(record)), []).append(record)
    groups = []
    for members in by_settings.values():
        origins = list(dict.fromkeys(_origin(record) for record in members if record.result is not None))
        by_origin: dict[tuple[str | None, str | None], list[RunRecord]] = {origin: [] for origin in origins}
        for record in members:
            origin = origins[0] if origins and record.result is None else _origin(record)
            by_origin.setdefault(origin, []).append(record)
        groups += [sorted(group, key=lambda record: int(record.config["seed"])) for group in by_origin.values()]
    return groups


def _label(group: Mapping[str, Any], all_groups: Sequence[Mapping[str, Any]]) -> str:
    """Name of the method, with the settings that its groups differ in."""
    same_method = [flat for flat in all_groups if flat["method.class_path"] == group["method.class_path"]]
    # An unfinished run has no origin yet, which tells it from no other.
    different = [
        key
        for key in group
        if len({settings_key(flat.get(key)) for flat in same_method if key in flat or key not in _ORIGIN}) > 1
    ]
    distinctive = {
        key.removeprefix("method.init_args."): text_of(group[key])
        for key in different
        if key not in {"trainer.epochs", "model.modalities"}
    }
    # Always named: a method on fewer modalities must not pass for the method itself where that has no run.
    if modalities := group.get("model.modalities"):
        distinctive["modalities"] = "+".join(modalities)
    text = ",".join(f"{key}={value}" for key, value in distinctive.items())
    epochs = f"@{group['trainer.epochs']}" if "trainer.epochs" in different else ""
    return f"{_class_name(group)}{f':{text}' if text else ''}{epochs}"


def _origin(record: RunRecord) -> tuple[str | None, str | None]:
    """Version of the package, and checksum of the data's content, of a finished run."""
    return software_version(record), (record.result or {}).get("data_content")


def _origin_settings(members: Sequence[RunRecord]) -> dict[str, str | None]:
    """Settings that only finished runs name; empty without one."""
    for record in members:
        if record.result is not None:
            version, content = _origin(record)
            return dict(zip(_ORIGIN, (version, content and content[:8]), strict=True))
    return {}


def _class_name(flat: Mapping[str, Any]) -> str:
    return str(flat["method.class_path"]).removeprefix("bmlr.methods.")


def _data_parameters(record: RunRecord) -> dict[str, Any]:
    """Parameters of the data set without the locations of its files."""
    entry = record.config["data"]
    try:
        locations = resolve_class(entry["class_path"], MultimodalData).location_parameters  # type: ignore[type-abstract]
    except ValueError:  # a class of the user's that is not imported here
        locations = MultimodalData.location_parameters
    return {key: value for key, value in (entry.get("init_args") or {}).items() if key not in locations}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
