"""Datasets of dictionaries, as torch and Hugging Face have them."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import bmlr.tasks
from bmlr._checks import check_choice, check_integer
from bmlr._random import mixed_seed, preserved_random_state
from bmlr.batch import Batch
from bmlr.data._base import SPLITS, Modality, MultimodalData, Preprocessing, Split, SplitName
from bmlr.data.sets._dataset_columns import Column
from bmlr.data.sets._dataset_items import as_values, entry_of, find_target_form, read_target
from bmlr.data.transforms._tokens import Tokeniser, tokeniser_of
from bmlr.tasks import Task


class DatasetData(MultimodalData):
    """Datasets of dictionaries as a data set; :func:`bmlr.data.from_datasets` makes one.

    A subclass whose constructor makes the datasets can be named on the command line.

    Args:
        train: Training split: a torch or Hugging Face dataset, or any sequence, of dictionaries.
        val: Validation split.
        test: Test split.
        modalities: Names of the modalities, which are keys of the dictionaries, or keys by name.
        target: Key of the target.
        group: Key of the group (speaker, source video), which no two splits should share; None without groups.
        task: Task; None takes that of the targets.
        classes: Names of the classes or labels; None takes those of the dataset, or numbers.
        forms: Forms of modalities that their values do not tell, by name.
        max_tokens: Most tokens of a text; the end of longer ones is cut off.
        name: Name in tables, and of runs.
    """

    protocol = "clean"

    def __init__(  # noqa: PLR0913
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        *,
        modalities: Sequence[str] | Mapping[str, str],
        target: str = "label",
        group: str | None = None,
        task: Task | Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        forms: Mapping[str, Modality] | None = None,
        max_tokens: int = 256,
        name: str = "datasets",
    ) -> None:
        if isinstance(modalities, str) or not modalities:
            raise ValueError(
                f"`modalities` should name the modalities, keys of the dictionaries. Found {modalities!r}."
            )
        self.keys = {u: u for u in modalities} if not isinstance(modalities, Mapping) else dict(modalities)
        self.target, self.group, self.max_tokens = target, group, check_integer("max_tokens", max_tokens, 1)
        self.given_task = _make_task(task)
        self.given_classes = None if classes is None else tuple(classes)
        self.given_forms = {
            u: m if isinstance(m, Modality) else Modality.from_dict(m) for u, m in (forms or {}).items()
        }
        vars(self).update(name=name)  # a class variable of every other data set
        self._datasets = {"train": train, "val": val, "test": test}
        self._known: _Known | None = None
        self.classes, self.modalities = (), {}

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor but the datasets; of a subclass its own."""
        if type(self) is not DatasetData:
            return super().hparams
        task = self.given_task
        return {
            "modalities": self.keys,
            "target": self.target,
            "group": self.group,
            "task": None if task is None else _task_entry(task),
            "classes": None if self.given_classes is None else list(self.given_classes),
            "forms": {u: dataclasses.asdict(form) for u, form in self.given_forms.items()} or None,
            "max_tokens": self.max_tokens,
            "name": self.name,
        }

    def prepare(self) -> None:
        """Read every item of the datasets once.

        Raises:
            ValueError: If they are no datasets of dictionaries, or their values differ in form; the message names the
                split, the item and the key.
        """
        if self._known is None:
            self._known = self._look_through()
            self.classes, self.modalities = self._known.classes, self._known.forms

    @property
    def task(self) -> Task:
        """The task given, or that of the targets."""
        return self._content.task

    @property
    def content_digest(self) -> str:
        """SHA-256 checksum of all items."""
        return self._content.digest

    @property
    def remarks(self) -> list[str]:
        """Observations on the items."""
        return list(self._content.remarks)

    def split(self, name: SplitName) -> DatasetSplit:
        """One split."""
        check_choice("name", name, SPLITS)
        return DatasetSplit(self._datasets[name], self.keys, self._content, name)

    def load_files(self, files: Mapping[str, Any], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, shape (1, …), from values such as the items have; files are not read.

        Args:
            files: A value per modality: a tensor, an array, numbers or a text.
            modalities: Modalities of the model; None takes all.

        Raises:
            ValueError: If a value is missing or of another form.
        """
        known, inputs = self._content, {}
        for name in modalities or known.forms:
            value = as_values(files.get(name), f"The value of '{name}'")
            if value is None and name not in known.optional:
                raise ValueError(
                    f"A value of '{name}' should be given, such as the items of the datasets have: files are not read."
                )
            inputs[name] = known.collate(name, [value], ["The new sample"])
        return inputs

    def preprocessing(self) -> Preprocessing:
        """Classes, forms, task and vocabularies."""
        known = self._content
        entries = {
            "task": _task_entry(known.task),
            "optional": sorted(known.optional),
            "digest": known.digest,
            "tokenisers": {name: tokeniser.as_dict() for name, tokeniser in known.tokenisers.items()},
        }
        return Preprocessing(known.classes, known.forms, entries)

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Take new samples by what a run has kept."""
        entries = preprocessing.entries
        self._known = _Known(
            task=cast("Task", _make_task(entries["task"])),
            classes=preprocessing.classes,
            forms=dict(preprocessing.modalities),
            tokenisers={name: tokeniser_of(entry) for name, entry in entries["tokenisers"].items()},
            max_tokens=self.max_tokens,
            optional=frozenset(entries["optional"]),
            digest=entries["digest"],
        )
        self.classes, self.modalities = self._known.classes, self._known.forms

    @property
    def _content(self) -> _Known:
        self.prepare()
        return cast("_Known", self._known)

    def _look_through(self) -> _Known:
        """Read all items, and tell task, classes, forms and vocabularies."""
        columns = {name: Column(name, key) for name, key in self.keys.items()}
        targets: dict[str, list[Any]] = {}
        groups: dict[str, list[str]] = {}
        digest = hashlib.sha256()
        for split in SPLITS:
            dataset = _checked(self._datasets[split], split)
            targets[split], groups[split] = [], []
            for index, item in enumerate(read_items(dataset, range(len(dataset)), split, seed=None)):
                where = f"Item {index} of `{split}`"
                targets[split].append(read_target(entry_of(item, self.target, where), f"{where}: its '{self.target}'"))
                digest.update(repr(targets[split][-1]).encode())
                if self.group is not None:
                    groups[split].append(str(entry_of(item, self.group, where)))
                for column in columns.values():
                    # Later items may lack a modality; of a misspelt key the first one tells.
                    value = item.get(column.key) if index else entry_of(item, column.key, where)
                    digest.update(column.add(value, split, f"{where}: its '{column.key}'"))
        known_names = _names_of(self._datasets["train"], self.target)
        task, classes, encoded = find_target_form(targets, self.given_task, self.given_classes, known_names)
        known = _Known(
            task=task,
            classes=classes,
            forms={},
            tokenisers={name: made for name, column in columns.items() if (made := column.make_vocabulary())},
            max_tokens=self.max_tokens,
            optional=frozenset(name for name, column in columns.items() if column.lacks_some),
            digest=digest.hexdigest(),
            targets=encoded,
            groups=groups if self.group is not None else None,
            present={split: {u: np.array(column.present[split]) for u, column in columns.items()} for split in SPLITS},
        )
        for name, column in columns.items():
            given = self.given_forms.get(name)
            known.forms[name] = given or column.form(known.tokenisers.get(name), self.max_tokens)
        known.remarks = tuple(remark for column in columns.values() if (remark := column.describe_cut(self.max_tokens)))
        return known


@dataclasses.dataclass
class _Known:
    """What the items of datasets are."""

    task: Task
    classes: tuple[str, ...]
    forms: dict[str, Modality]
    tokenisers: Mapping[str, Tokeniser]
    max_tokens: int
    optional: frozenset[str]
    digest: str
    targets: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, list[str]] | None = None
    present: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def collate(self, name: str, values: Sequence[np.ndarray | str | None], where: Sequence[str]) -> Tensor:
        """Inputs (B, …) of one modality, float32, or int64 of tokens; zeros or padding where a value is missing."""
        form, tokeniser = self.forms[name], self.tokenisers.get(name)
        rows: list[np.ndarray | None] = []
        for value, place in zip(values, where, strict=True):
            if value is not None and isinstance(value, str) != (tokeniser is not None):
                raise ValueError(f"{place}: its '{name}' should be {'a text' if tokeniser else 'numbers'}.")
            if isinstance(value, str):
                rows.append(cast("Tokeniser", tokeniser).encode(value, self.max_tokens)[0])
            else:
                rows.append(None if value is None else value.reshape(1) if value.ndim == 0 else value)
        tokens = form.kind == "text"
        ragged = form.kind in {"sequence", "text"}
        longest = max((len(row) for row in rows if row is not None), default=0)
        shape = (max(form.shape[0], longest), *form.shape[1:]) if ragged else form.shape
        inputs = np.full((len(rows), *shape), form.padding if tokens else 0, dtype=np.int64 if tokens else np.float32)
        for target, row, place in zip(inputs, rows, where, strict=True):
            if row is None:
                continue
            if row.ndim != len(shape) or row.shape[int(ragged) :] != shape[int(ragged) :]:
                raise ValueError(f"{place}: its '{name}' should have shape {form.shape}. Found {row.shape}.")
            if row.dtype.kind == "f" and not np.isfinite(row).all():
                raise ValueError(f"{place}: its '{name}' should be finite. Found NaN or infinity.")
            target[: len(row)] = row
        return torch.from_numpy(inputs)


class DatasetSplit(Split):
    """One split of datasets of dictionaries.

    Items are read one by one with their own state of torch's, NumPy's and Python's random generators, so that random
    transforms of the dataset depend on the seed and the position alone, and a resumed run sees the same.
    """

    def __init__(self, dataset: Any, keys: Mapping[str, str], known: _Known, name: str) -> None:
        self._dataset, self._keys, self._known, self._name = dataset, keys, known, name
        if name not in known.targets:
            raise ValueError("The datasets of a run are not in its folder: give them again by `data`.")
        self.targets = known.targets[name]
        self.groups = None if known.groups is None else known.groups[name]
        self.present = {u: mask for u, mask in known.present[name].items() if not mask.all()} or None

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The items at ``indices``, in that order."""
        positions = [int(index) for index in indices]
        items = list(read_items(self._dataset, positions, self._name, seed=seed if augment else None))
        where = [f"Item {position} of `{self._name}`" for position in positions]
        inputs: dict[str, Any] = {
            name: self._known.collate(
                name,
                [as_values(item.get(key), f"{place}: its '{key}'") for item, place in zip(items, where, strict=True)],
                where,
            )
            for name, key in self._keys.items()
        }
        present = {name: torch.from_numpy(mask[positions]) for name, mask in (self.present or {}).items()}
        return Batch(inputs, self.targets[positions], present or None, torch.tensor(positions, dtype=torch.int64))

    def texts(self, name: str, indices: Sequence[int]) -> list[str] | None:
        """The texts of a modality, empty where an item has none; None of tokens and of other modalities."""
        if name not in self._known.tokenisers:
            return None
        items = read_items(self._dataset, indices, self._name, seed=None)
        return [str(item.get(self._keys[name]) or "") for item in items]


def read_items(dataset: Any, positions: Sequence[int], split: str, *, seed: int | None) -> Iterator[Mapping[str, Any]]:
    """Items of a dataset, each with random generators of its own; those of the caller stay as they are.

    Raises:
        ValueError: If an item is no dictionary.
    """
    for position in positions:
        own = mixed_seed(0 if seed is None else seed + 1, position)
        with preserved_random_state(gpus=False):
            torch.default_generator.manual_seed(own)
            np.random.seed(own % 2**32)  # noqa: NPY002  (the legacy stream is the one user code draws from)
            random.seed(own)
            item = dataset[position]
        if not isinstance(item, Mapping):
            raise ValueError(
                f"Item {position} of `{split}` should be a dictionary with the modalities and the target. "
                f"Found an object of type {type(item).__name__}."
            )
        yield item


def _checked(dataset: Any, split: str) -> Any:
    """A dataset with a length and items by position."""
    if dataset is None:
        raise ValueError(
            f"`{split}` should be a dataset of dictionaries. A run does not hold it: give the data again, as in "
            "bmlr.training.evaluate_run(RUN, data=data)."
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, (Mapping, str)):
        kind = type(dataset).__name__
        raise ValueError(
            f"`{split}` should be a dataset of dictionaries, with a length and items by position. Found {kind}."
        )
    if not len(dataset):
        raise ValueError(f"`{split}` should hold samples. It is empty.")
    return dataset


def _names_of(dataset: Any, target: str) -> tuple[str, ...] | None:
    """Names of the classes that a dataset of Hugging Face knows."""
    feature = (getattr(dataset, "features", None) or {}).get(target)
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return None if names is None else tuple(map(str, names))


def _task_entry(task: Task) -> dict[str, Any]:
    return {"name": type(task).__name__, **task.hparams}


def _make_task(task: Task | Mapping[str, Any] | None) -> Task | None:
    if task is None or isinstance(task, Task):
        return task
    arguments = dict(task)
    made: Task = getattr(bmlr.tasks, arguments.pop("name"))(**arguments)
    return made
