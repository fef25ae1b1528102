"""What of a configuration decides a result, and runs grouped by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from bmlr.runs._records import RunRecord

#: Where the files are, which does not make other data.
_PLACES = {"root", "cache"}


#: Options of the trainer that cannot change a result.
_IDLE = {"progress", "num_workers", "checkpoint_every", "on_nonfinite", "max_nonfinite"}


def group_records(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by label; runs without one get the name of their method with what tells it from others of its kind."""
    named: dict[str, list[RunRecord]] = {}
    unnamed: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.label:
            named.setdefault(record.label, []).append(record)
        else:
            unnamed.setdefault(json.dumps(_all_settings(record), sort_keys=True), []).append(record)
    groups = list(unnamed.values())
    flat = [flatten(_all_settings(members[0])) for members in groups]
    for members, mine in zip(groups, flat, strict=True):
        short = mine["method.class_path"].rpartition(".")[2]
        same = [other for other in flat if other["method.class_path"] == mine["method.class_path"]]
        telling = {
            key.removeprefix("method.init_args."): value
            for key, value in mine.items()
            if len({json.dumps(other.get(key)) for other in same}) > 1
            and key not in {"trainer.epochs", "model.modalities"}
        }
        # Always said: a method on fewer modalities must not pass for the method itself where that has no run.
        if modalities := mine.get("model.modalities"):
            telling["modalities"] = "+".join(modalities)
        text = ",".join(f"{key}={value}" for key, value in telling.items())
        epochs = f"@{mine['trainer.epochs']}" if len({other.get("trainer.epochs") for other in same}) > 1 else ""
        label = f"{short}{f':{text}' if text else ''}{epochs}"
        for record in sorted(members, key=lambda record: int(record.config["seed"])):
            named.setdefault(label, []).append(dataclasses.replace(record, label=label))
    return named


def finished_result(record: RunRecord) -> dict[str, Any]:
    if record.result is None:
        raise ValueError(f"{record.directory} is not finished.")
    return record.result


def data_settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs' data the same."""
    entry, result = record.config["data"], finished_result(record)
    given = {key: value for key, value in (entry.get("init_args") or {}).items() if key not in _PLACES}
    return {
        "data": entry["class_path"],
        "protocol": result["protocol"],
        "init_args": {key: value for key, value in given.items() if key != "protocol"},
        "samples": result["samples"],
        "majority rate": round(float(result["majority_rate"]), 6),
    }


def method_settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs the same but for the seed and the data."""
    config = {key: value for key, value in record.config.items() if key not in {"data", "seed"}}
    config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in _IDLE}
    return config


def _all_settings(record: RunRecord) -> dict[str, Any]:
    """What makes two runs the same but for the seed."""
    data = record.config["data"]
    given = {key: value for key, value in (data.get("init_args") or {}).items() if key not in _PLACES}
    return {**method_settings(record), "data": {"class_path": data["class_path"], "init_args": given}}


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
