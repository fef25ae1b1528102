"""Resolved configuration of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bmlr._checks import nearest_name
from bmlr._files import text_checksum
from bmlr._version import __version__
from bmlr.config._classes import T, class_entry, class_path, make_class, plain_data
from bmlr.config._file import check_seal, other_version, read_entries, sealed_yaml
from bmlr.config._given import GivenModel
from bmlr.config._optimizer import OptimizerOptions
from bmlr.config._options import ModelOptions, TrainerOptions
from bmlr.config._parts import own_modules
from bmlr.data import MultimodalData, Split, SplitName
from bmlr.methods import Method
from bmlr.modality_dropout import check_dropout
from bmlr.parameters import check_parts


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Data, method and options, which decide the result of a run.

    Attributes:
        data: The data set.
        method: The method.
        model: Options of the model, or a finished model.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        seed: Seed of weights, order and random transforms.
    """

    data: MultimodalData
    method: Method
    model: ModelOptions | GivenModel
    optimizer: OptimizerOptions
    trainer: TrainerOptions
    seed: int

    def __post_init__(self) -> None:
        if names := tuple(self.model.modalities or self.data.modalities):  # a table tells its own once it is read
            self.method.check_modalities(names)
            check_parts("optimizer.groups", self.optimizer.groups or (), names)
            if isinstance(self.trainer.gradient_clip_val, Mapping):
                check_parts("trainer.gradient_clip_val", self.trainer.gradient_clip_val, names)
            check_dropout("trainer.modality_dropout", self.trainer.modality_dropout, names, self.method)

    @functools.cached_property
    def model_data(self) -> MultimodalData:
        """The data set, restricted to the modalities of the model."""
        return self.model.select(self.data)

    @functools.cached_property
    def split(self) -> Callable[[SplitName], Split]:
        """One split of :attr:`model_data`, asked of it once: a data set may read its files anew each time."""
        return functools.cache(self.model_data.split)

    @property
    def batch_size(self) -> int:
        """Samples of a batch: those of the trainer's options, else the data set's default."""
        return self.trainer.batch_size or self.data.defaults.batch_size

    @property
    def required(self) -> dict[str, RunConfig]:
        """Configurations of the runs that the method starts from, by name; the data must be prepared."""
        methods = self.method.required_runs(tuple(self.model_data.modalities))
        return {name: dataclasses.replace(self, method=method) for name, method in methods.items()}

    @property
    def user_modules(self) -> list[str]:
        """Modules of the user's own classes."""
        classes = own_modules({"class_path": class_path(type(instance))} for instance in (self.data, self.method))
        options = (self.model, self.optimizer, self.trainer)
        return list(dict.fromkeys([*classes, *(module for part in options for module in part.own_modules)]))

    def as_dict(self) -> dict[str, Any]:
        """Plain data in the form the command line reads back.

        Locations of the data are absolute: the run can be used from any directory.
        """
        data = class_entry(self.data)
        data["init_args"] |= self._locations()
        return {
            "data": data,
            "method": class_entry(self.method),
            "model": self.model.as_dict(),
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

        The data counts by its content, not by its location; only where it has no checksum does the location count.

        Raises:
            FileNotFoundError: If the data is missing.
            ValueError: If the data cannot be read.
        """
        return text_checksum(json.dumps([self.settings, __version__, self.data_identity], sort_keys=True))

    @property
    def data_identity(self) -> str | dict[str, str]:
        """Checksum of the data's content; only where there is none, its location.

        Raises:
            FileNotFoundError: If the data is missing.
            ValueError: If the data cannot be read.
        """
        content = self.data.content_digest
        return self._locations() if content is None else content

    @property
    def settings(self) -> dict[str, Any]:
        """Entries that can change the result, without locations and content of the data."""
        entries = self.as_dict()
        locations = self.data.location_parameters
        parameters = {name: value for name, value in entries["data"]["init_args"].items() if name not in locations}
        return {
            **entries,
            "data": {**entries["data"], "init_args": parameters},
            "trainer": TrainerOptions.affecting_result(entries["trainer"]),
        }

    def _locations(self) -> dict[str, str]:
        """Absolute paths of the parameters that say where the data is."""
        parameters = self.data.hparams
        paths = {name: parameters.get(name) for name in sorted(self.data.location_parameters)}
        return {name: str(Path(path).expanduser().absolute()) for name, path in paths.items() if path is not None}

    @property
    def name(self) -> str:
        """Name of the run: data, method, seed, start of the digest."""
        return f"{self.data.name}-{type(self.method).__name__}-seed{self.seed}-{self.digest[:8]}"


def read_config(path: Path, *, root: Path | str | None = None) -> RunConfig:
    """Read the ``config.yaml`` of a run.

    Only registered data sets and methods, and subclasses that are already imported, are made: reading a file imports
    no code.

    Args:
        path: The file.
        root: Folder of the data in place of the recorded one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not the configuration of a run; the message names the entry.
    """
    entries, intact = read_entries(path)
    hint = other_version(intact)
    if root is not None:
        parameters = entries["data"].get("init_args") or {}
        if "root" not in parameters:
            raise ValueError(f"The data set of {path.parent} has no files of yours: leave out the root.")
        entries["data"]["init_args"] = {**parameters, "root": str(root)}
    config = RunConfig(
        data=make_class(entries["data"], MultimodalData, f"{path}: data", hint),  # type: ignore[type-abstract]
        method=make_class(entries["method"], Method, f"{path}: method", hint),  # type: ignore[type-abstract]
        model=_make_options(entries["model"], GivenModel, f"{path}: model", hint)
        if "given" in entries["model"]
        else _make_options(entries["model"], ModelOptions, f"{path}: model", hint),
        optimizer=_make_options(entries["optimizer"], OptimizerOptions, f"{path}: optimizer", hint),
        trainer=_make_options(entries["trainer"], TrainerOptions, f"{path}: trainer", hint),
        seed=entries["seed"],
    )
    check_seal(path, intact)
    return config


def _make_options(values: Mapping[str, Any], options: type[T], where: str, hint: str) -> T:
    allowed = [field.name for field in dataclasses.fields(options) if field.compare]  # type: ignore[arg-type]
    if unknown := sorted(map(str, set(values) - set(allowed))):
        raise ValueError(
            f"{where} should have entries among {', '.join(allowed)}. Found {', '.join(unknown)}."
            f"{hint or nearest_name(unknown[0], allowed)}"
        )
    try:
        return options(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}{hint}") from error
