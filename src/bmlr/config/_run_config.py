"""The resolved configuration of a run: what re-runs it, and what names it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from bmlr._checks import nearest_name
from bmlr._files import text_checksum
from bmlr._version import __version__
from bmlr.config._classes import T, class_entry, make_class, plain_data
from bmlr.config._options import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.config._yaml import load_plain_yaml
from bmlr.data import MultimodalData
from bmlr.methods import Method

_SEAL = "# Checksum of what follows; remove this line if you change that: sha256 "


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

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
        """The data as the model sees them: its modalities, and the samples that have one of these."""
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
        """The text of ``config.yaml``, its checksum first."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        return f"{_SEAL}{text_checksum(text)}\n{text}"

    @property
    def digest(self) -> str:
        """Hash of the configuration and the package version; options that cannot change a result are left out.

        Among them is what to do about losses that are not finite, where that is to stop: then there is no result.
        """
        content = self.as_dict()
        irrelevant = ["progress", "num_workers", "checkpoint_every", "gradients"]
        if self.trainer.on_nonfinite != "skip":
            irrelevant.append("max_nonfinite")
        if self.trainer.on_nonfinite == "stop":
            irrelevant.append("on_nonfinite")
        for key in irrelevant:
            del content["trainer"][key]
        text = json.dumps({"config": content, "version": __version__}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the run: data, method, seed and the beginning of the digest."""
        return f"{self.data.name}-{type(self.method).__name__}-seed{self.seed}-{self.digest[:8]}"


def read_config(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run.

    Only registered data sets and methods, and subclasses that are already imported, are made: reading a file imports
    no code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not the configuration of a run; the message names the entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no run in {path.parent}: {path.name} is missing.")
    try:
        text = path.read_text(encoding="utf-8")
        content = load_plain_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from error
    names = [field.name for field in dataclasses.fields(RunConfig)]
    if not isinstance(content, dict) or set(content) != set(names):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} should have the entries {', '.join(names)}. Found {found}.")
    config = RunConfig(
        data=make_class(content["data"], MultimodalData, f"{path}: data"),  # type: ignore[type-abstract]
        method=make_class(content["method"], Method, f"{path}: method"),  # type: ignore[type-abstract]
        model=_make_options(content["model"], ModelOptions, f"{path}: model"),
        optimizer=_make_options(content["optimizer"], OptimizerOptions, f"{path}: optimizer"),
        trainer=_make_options(content["trainer"], TrainerOptions, f"{path}: trainer"),
        seed=_checked_seed(content["seed"], path),
    )
    seal, _, sealed = text.partition("\n")
    # A file without the line was changed on purpose; any other comment in its place is what damage left of it.
    if seal.startswith("#") and seal != f"{_SEAL}{text_checksum(sealed)}":
        raise ValueError(
            f"{path} does not fit its checksum: it was changed or damaged after it was written. Put it back, or "
            "remove its first line if the change was meant."
        )
    return config


def _make_options(entry: Any, options: type[T], where: str) -> T:
    allowed = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    unknown = sorted(map(str, set(entry) - set(allowed))) if isinstance(entry, dict) else [repr(entry)]
    if unknown:
        raise ValueError(
            f"{where} should have entries among {', '.join(allowed)}. Found {', '.join(unknown)}."
            f"{nearest_name(unknown[0], allowed)}"
        )
    try:
        return options(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error


def _checked_seed(seed: Any, path: Path) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"{path}: seed should be an integer. Found {seed!r}.")
    return seed
