"""Resolved configuration of a run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmlr._checks import nearest_name
from bmlr._version import __version__
from bmlr.config._classes import T, class_entry, make_class, plain_data
from bmlr.config._file import check_seal, other_version, read_entries, sealed_yaml
from bmlr.config._options import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.methods import Method


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Data, method and options, which decide the result of a run.

    Attributes:
        data: The data set.
        method: The method.
        model: Options of the model.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        seed: Seed of weights, order and random transforms.
    """

    data: MultimodalData
    method: Method
    model: ModelOptions
    optimizer: OptimizerOptions
    trainer: TrainerOptions
    seed: int

    def __post_init__(self) -> None:
        if self.model.modalities is not None:
            self.method.check_modalities(self.model.modalities)

    @functools.cached_property
    def model_data(self) -> MultimodalData:
        """The data set, restricted to the modalities of the model."""
        return self.model.select(self.data)

    def as_dict(self) -> dict[str, Any]:
        """Plain data in the form the command line reads back."""
        return {
            "data": class_entry(self.data),
            "method": class_entry(self.method),
            "model": plain_data(dataclasses.asdict(self.model)),
            "optimizer": plain_data(dataclasses.asdict(self.optimizer)),
            "trainer": plain_data(dataclasses.asdict(self.trainer)),
            "seed": self.seed,
        }

    def as_yaml(self) -> str:
        """Text of ``config.yaml``, sealed by its checksum."""
        return sealed_yaml(self.as_dict())

    @property
    def digest(self) -> str:
        """Hash of the version and all that can change the result.

        Locations of the data count: files of the same name in another folder may hold something else.
        """
        content = self.as_dict()
        content["trainer"] = TrainerOptions.affecting_result(content["trainer"])
        text = json.dumps({"config": content, "version": __version__}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the run: data, method, seed, start of the digest."""
        return f"{self.data.name}-{type(self.method).__name__}-seed{self.seed}-{self.digest[:8]}"


def read_config(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run.

    Only registered data sets and methods, and subclasses that are already imported, are made: reading a file imports
    no code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not the configuration of a run; the message names the entry.
    """
    entries, intact = read_entries(path)
    hint = other_version(intact)
    config = RunConfig(
        data=make_class(entries["data"], MultimodalData, f"{path}: data", hint),  # type: ignore[type-abstract]
        method=make_class(entries["method"], Method, f"{path}: method", hint),  # type: ignore[type-abstract]
        model=_make_options(entries["model"], ModelOptions, f"{path}: model", hint),
        optimizer=_make_options(entries["optimizer"], OptimizerOptions, f"{path}: optimizer", hint),
        trainer=_make_options(entries["trainer"], TrainerOptions, f"{path}: trainer", hint),
        seed=entries["seed"],
    )
    check_seal(path, intact)
    return config


def _make_options(values: Mapping[str, Any], options: type[T], where: str, hint: str) -> T:
    allowed = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    if unknown := sorted(map(str, set(values) - set(allowed))):
        raise ValueError(
            f"{where} should have entries among {', '.join(allowed)}. Found {', '.join(unknown)}."
            f"{hint or nearest_name(unknown[0], allowed)}"
        )
    try:
        return options(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}{hint}") from error
