"""Which arrays of a file are modalities, labels, split and groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from bmlr._checks import check_choice, nearest_name
from bmlr.data._base import SPLITS
from bmlr.data.store._targets import TaskName


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """Names of the arrays of a file.

    Attributes:
        modalities: Array of each modality.
        labels: Array of the labels.
        split: Array that says the split of each sample.
        split_values: Values of ``split`` by the name of the split; None where they are its words.
        groups: Array of the group of each sample.
        classes: Array of the names of the classes.
        lengths: Array of the number of time steps of each sample, by modality.
        task: What the labels are; None where their form says it.
        samples: Whether samples are ``rows`` or ``columns``; None where the shapes say it.
    """

    modalities: Mapping[str, str] | None = None
    labels: str | None = None
    split: str | None = None
    split_values: Mapping[str, int | str] | None = None
    groups: str | None = None
    classes: str | None = None
    lengths: Mapping[str, str] | None = None
    task: TaskName | None = None
    samples: Literal["rows", "columns"] | None = None

    def __post_init__(self) -> None:
        for name in ("modalities", "split_values", "lengths"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"Parameter `{name}` should map names, as in {{image: x, text: t}}. Found {value!r}.")
        for split in self.split_values or {}:
            check_choice("split_values", split, SPLITS)
        if self.task is not None:
            check_choice("task", self.task, get_args(TaskName))
        if self.samples is not None:
            check_choice("samples", self.samples, ("rows", "columns"))

    def given(self) -> dict[str, Any]:
        """The entries that are not None, as plain values."""
        entries = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in entries.items()
            if value is not None
        }

    def beside(self, path: Path) -> ArrayLayout:
        """This layout, what it leaves open taken from the YAML file beside a file of arrays.

        Raises:
            ValueError: If the YAML file is none, or has an unknown entry.
        """
        import yaml

        notes = path.with_suffix(".yaml")
        if not notes.is_file():
            return self
        try:
            entries = yaml.safe_load(notes.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{notes} should be YAML: {' '.join(str(error).split())}") from error
        known = [field.name for field in dataclasses.fields(self)]
        if not isinstance(entries, dict):
            raise ValueError(f"{notes} should hold entries such as `labels: y`, of {', '.join(known)}.")
        for name in entries:
            if name not in known:
                raise ValueError(
                    f"{notes} should have entries of {', '.join(known)}. Found '{name}'.{nearest_name(name, known)}"
                )
        return ArrayLayout(**{**entries, **self.given()})
