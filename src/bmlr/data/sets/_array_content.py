"""Samples of a file of named arrays."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from bmlr.data._base import SPLITS, SplitName
from bmlr.data.readers._named_arrays import NamedArrays
from bmlr.data.sets._array_layout import ArrayLayout
from bmlr.data.sets._lists import SPLIT_WORDS
from bmlr.data.store._targets import TaskName

_FEW_NUMBERS = 10  # whole numbers that look like classes


@dataclasses.dataclass(frozen=True)
class ArrayContent:
    """All samples of a file, as it has them.

    Attributes:
        values: Values of each modality: vectors (N, D), sequences (N, T, D), float32, or texts (N).
        targets: Class indices (N,), zeros and ones (N, L), or numbers (N,).
        task: Name of the task.
        classes: Names of the classes or labels.
        splits: Name of the split of each sample, "" where it is in none; None where the file does not say.
        groups: Group of each sample; None where the file does not say.
        remarks: What was decided on the way, a sentence each.
    """

    values: Mapping[str, np.ndarray]
    targets: np.ndarray
    task: TaskName
    classes: tuple[str, ...]
    splits: np.ndarray | None
    groups: np.ndarray | None
    remarks: tuple[str, ...]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 checksum; a grid asks for it once per run."""
        total = hashlib.sha256(repr((self.task, self.classes)).encode())
        arrays: dict[str, Any] = {**self.values, "": self.targets, "split": self.splits, "groups": self.groups}
        for name, array in arrays.items():
            values = np.ascontiguousarray([] if array is None else array)
            total.update(repr((name, values.dtype.str, values.shape)).encode() + values.tobytes())
        return total.hexdigest()


def read_content(arrays: NamedArrays, layout: ArrayLayout) -> ArrayContent:
    """Read and check what a layout names.

    Args:
        arrays: The file.
        layout: Names of its arrays.

    Raises:
        ValueError: If an array is missing, has another number of samples, or values that cannot be used; the message
            names the array, and the row, counted from 0.
    """
    if not layout.modalities or layout.labels is None:
        missing = "labels" if layout.modalities else "modalities"
        example = "--data.labels NAME" if layout.modalities else "--data.modalities '{image: NAME, text: NAME}'"
        raise ValueError(
            f"Parameter `{missing}` should name arrays of {arrays.path}, as {example} or in {arrays.path.stem}.yaml "
            f"beside it. It has {arrays.names}."
        )
    remarks: list[str] = []
    reader = _Reader(arrays, remarks)
    labels = reader.read(layout.labels, "labels")
    names = _expanded(layout.modalities, arrays)
    if len(names) < 2:
        raise ValueError(f"Parameter `modalities` should name at least 2 arrays. Found {', '.join(names) or 'none'}.")
    raw = {name: reader.read(array, f"modalities['{name}']") for name, array in names.items()}
    labels, count = _count_samples(labels, raw, layout)
    values = {name: _oriented(name, array, count, layout.samples, arrays, remarks) for name, array in raw.items()}
    for name, array in (layout.lengths or {}).items():
        if name not in values or values[name].ndim != 3:
            raise ValueError(f"Parameter `lengths` should name sequences (N, T, D). Found '{name}'.")
        _pad(values[name], _flat(reader.read(array, "lengths"), count, "lengths"), array)
    for name, value in values.items():
        _check_finite(name, value, arrays)
    class_names = None if layout.classes is None else [str(value) for value in arrays[layout.classes].ravel()]
    targets, task, classes = _targets(labels, layout.task, class_names, arrays, remarks)
    return ArrayContent(
        values=values,
        targets=targets,
        task=task,
        classes=classes,
        splits=_splits(reader, layout, count),
        groups=None
        if layout.groups is None
        else _flat(reader.read(layout.groups, "groups"), count, "groups").astype(str),
        remarks=tuple(remarks),
    )


class _Reader:
    """Arrays that are whole, or in parts named by the split."""

    def __init__(self, arrays: NamedArrays, remarks: list[str]) -> None:
        self.arrays, self.remarks = arrays, remarks
        self.parts: list[SplitName] | None = None
        self.split_of_rows: np.ndarray | None = None

    def read(self, name: str, parameter: str) -> np.ndarray:
        """The array of a name, or its parts ``name_train``, ``name_val`` and ``name_test`` one after another."""
        if name in self.arrays:
            return self.arrays[name]
        found: dict[SplitName, str] = {}
        for word, split in SPLIT_WORDS.items():
            candidate = name.replace("*", word) if "*" in name else f"{name}_{word}"
            if candidate in self.arrays:
                if split in found:
                    raise ValueError(
                        f"Parameter `{parameter}` should name one array of each split. {self.arrays.path} has "
                        f"'{found[split]}' and '{candidate}'."
                    )
                found[split] = candidate
        if not found:
            return self.arrays[name]  # raises, with the names that there are
        if not {"train", "test"} <= set(found):
            raise ValueError(
                f"Parameter `{parameter}` should name arrays of train and test. {self.arrays.path} has only "
                f"{', '.join(found.values())}."
            )
        parts = [split for split in SPLITS if split in found]
        pieces = [self.arrays[found[split]] for split in parts]
        if pieces[0].ndim == 2 and 1 in pieces[0].shape and parameter in {"labels", "groups", "lengths"}:
            pieces = [piece.ravel() for piece in pieces]  # a row of MATLAB
        sizes = [len(piece) for piece in pieces]
        rows = np.repeat(parts, sizes)
        if self.split_of_rows is not None and not np.array_equal(rows, self.split_of_rows):
            expected = {str(part): int((self.split_of_rows == part).sum()) for part in self.parts or parts}
            raise ValueError(
                f"The arrays of `{parameter}` in {self.arrays.path} should have as many samples as the others, "
                f"{expected}. Found {dict(zip(map(str, parts), sizes, strict=True))}."
            )
        self.parts, self.split_of_rows = parts, rows
        if len({piece.shape[1:] for piece in pieces}) > 1:
            raise ValueError(
                f"The arrays of `{parameter}` in {self.arrays.path} should have one shape but for the samples. Found "
                f"{[piece.shape for piece in pieces]}."
            )
        return np.concatenate(pieces)


def _expanded(modalities: Mapping[str, str], arrays: NamedArrays) -> dict[str, str]:
    """Modalities with a cell of MATLAB taken as one for each of its arrays."""
    names: dict[str, str] = {}
    for name, array in modalities.items():
        cells = 0
        while array not in arrays and f"{array}{{{cells + 1}}}" in arrays:
            cells += 1
            names[f"{name}{cells}"] = f"{array}{{{cells}}}"
        if not cells:
            names[name] = array
    return names


def _count_samples(labels: np.ndarray, raw: Mapping[str, np.ndarray], layout: ArrayLayout) -> tuple[np.ndarray, int]:
    """Labels with one row per sample, and the number of samples."""
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.ravel()
    if labels.ndim not in {1, 2}:
        raise ValueError(
            f"Parameter `labels` should name an array (N) or (N, L). '{layout.labels}' has shape {labels.shape}."
        )
    columns_only = labels.ndim == 2 and all(
        labels.shape[1] in array.shape[:2] and labels.shape[0] not in array.shape[:2] for array in raw.values()
    )
    if labels.ndim == 2 and layout.samples != "rows" and columns_only:
        labels = labels.T
    return labels, len(labels)


def _oriented(
    name: str,
    array: np.ndarray,
    count: int,
    samples: Literal["rows", "columns"] | None,
    arrays: NamedArrays,
    remarks: list[str],
) -> np.ndarray:
    """Values of a modality with one row per sample, float32 or texts."""
    shape = array.shape
    if array.dtype.kind == "U":
        return _flat(array, count, f"modalities['{name}']")
    if array.ndim == 2 and samples != "rows" and shape[1] == count:
        if samples is None and shape[0] == count:
            if arrays.matlab:
                raise ValueError(
                    f"'{name}' of {arrays.path} has shape {shape}, so that samples could be rows or columns. Set "
                    "`samples = rows` or `samples = columns`."
                )
        elif samples == "columns" or arrays.matlab:
            remarks.append(f"Samples of '{name}', of shape {shape}, are its columns.")
            array = array.T
        else:
            raise ValueError(
                f"'{name}' of {arrays.path} should have a row for each of the {count} labels. Found shape {shape}. If "
                "samples are columns, set `samples = columns`."
            )
    elif samples == "columns" and array.ndim == 2:
        raise ValueError(f"'{name}' of {arrays.path} should have {count} columns, one per label. Found shape {shape}.")
    if array.ndim == 1:
        array = array[:, None]
    if len(array) != count:
        raise ValueError(f"'{name}' of {arrays.path} should have {count} samples, as the labels. Found shape {shape}.")
    if array.ndim not in {2, 3} or not array.size:
        raise ValueError(f"'{name}' should hold vectors (N, D) or sequences (N, T, D). Found shape {shape}.")
    return np.array(array, dtype=np.float32)


def _flat(array: np.ndarray, count: int, parameter: str) -> np.ndarray:
    """One value per sample."""
    if array.size != count or max(array.shape, default=0) != count:
        raise ValueError(f"Parameter `{parameter}` should name an array of {count} values. Found shape {array.shape}.")
    return array.ravel()


def _pad(values: np.ndarray, lengths: np.ndarray, array: str) -> None:
    """Set time steps beyond a sample's length to zero, in place."""
    steps = values.shape[1]
    if (
        lengths.dtype.kind not in "iuf"
        or not ((lengths >= 0) & (lengths <= steps) & (lengths == np.floor(lengths))).all()
    ):
        raise ValueError(f"Array '{array}' should hold lengths from 0 to {steps}. Found others.")
    values[np.arange(steps) >= lengths[:, None]] = 0


def _check_finite(name: str, values: np.ndarray, arrays: NamedArrays) -> None:
    if values.dtype.kind == "U":
        return
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if len(bad):
        rows = ", ".join(map(str, bad[:3])) + (", …" if len(bad) > 3 else "")
        raise ValueError(
            f"'{name}' of {arrays.path} should be finite. Found NaN, infinity or numbers beyond float32 in "
            f"{len(bad)} of {len(values)} rows ({rows}, counted from 0). Replace them, or leave these samples out."
        )


def _targets(
    labels: np.ndarray, task: TaskName | None, names: list[str] | None, arrays: NamedArrays, remarks: list[str]
) -> tuple[np.ndarray, TaskName, tuple[str, ...]]:
    """Targets, task and names of the classes, by the labels' form."""
    place = f"The labels of {arrays.path}"
    if labels.dtype.kind == "f":
        if bad := np.flatnonzero(~np.isfinite(labels).reshape(len(labels), -1).all(1)).tolist():
            raise ValueError(f"{place} should be finite. Row {bad[0]}, counted from 0, is not. Leave such samples out.")
        whole = bool((labels == np.rint(labels)).all())
        if whole and task != "regression" and (arrays.matlab or task is not None or labels.ndim == 2):
            labels = labels.astype(np.int64)  # MATLAB's numbers are floating-point ones
    if labels.ndim == 2:
        return _label_sets(labels, task, names, place, remarks)
    if task == "regression" or (task is None and labels.dtype.kind == "f"):
        return _numbers(labels, task, place, remarks), "regression", ()
    if task == "multilabel":
        raise ValueError(f"{place} should have shape (N, L) where `task = multilabel`. Found {labels.shape}.")
    return _classes(labels, names, place)


def _numbers(labels: np.ndarray, task: TaskName | None, place: str, remarks: list[str]) -> np.ndarray:
    """Numbers to predict, float32."""
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{place} should be numbers where `task = regression`. Found texts.")
    distinct = np.unique(labels)
    if len(distinct) == 1:
        raise ValueError(f"{place} are all {distinct[0]:g}, so that there is nothing to predict.")
    if task is None and len(distinct) <= _FEW_NUMBERS and (distinct == np.rint(distinct)).all():
        remarks.append(
            f"The labels are {len(distinct)} whole numbers of a floating-point type, taken as numbers to predict. If "
            "they are classes, set `task = multiclass`."
        )
    return labels.astype(np.float32)


def _classes(labels: np.ndarray, names: list[str] | None, place: str) -> tuple[np.ndarray, TaskName, tuple[str, ...]]:
    """Indices of classes that are whole numbers or texts."""
    if labels.dtype.kind == "f":
        raise ValueError(f"{place} should be whole numbers or texts where `task = multiclass`. Found {labels.dtype}.")
    values, targets = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"{place} should have two classes or more. Found {values.tolist()}.")
    if values.dtype.kind == "i" and values[0] == -1 and values[1] == 0 and len(values) > 3:
        raise ValueError(f"{place} have -1 beside 0, 1, 2, …, which often means no label. Leave these samples out.")
    if names is None:
        return targets.reshape(-1).astype(np.int64), "multiclass", tuple(str(value) for value in values)
    first = int(values.dtype.kind != "U" and values[-1] == len(names))  # labels from 1 reach their number
    if values.dtype.kind == "U" or values[0] < first or values[-1] - first >= len(names):
        raise ValueError(
            f"Parameter `classes` should name an array with a name for each of the labels from 0 or 1 to {values[-1]}. "
            f"Found {len(names)} names."
        )
    return labels.astype(np.int64) - first, "multiclass", tuple(names)


def _label_sets(
    labels: np.ndarray, task: TaskName | None, names: list[str] | None, place: str, remarks: list[str]
) -> tuple[np.ndarray, TaskName, tuple[str, ...]]:
    """Targets of labels (N, L): one-hot, or several labels."""
    if labels.dtype.kind not in "biu" or not np.isin(labels, (0, 1)).all() or task == "regression":
        raise ValueError(f"{place} of shape {labels.shape} should be zeros and ones, of classes or several labels.")
    known = tuple(names or map(str, range(labels.shape[1])))
    if len(known) != labels.shape[1]:
        raise ValueError(f"Parameter `classes` should name an array of {labels.shape[1]} names. Found {len(known)}.")
    one_hot = bool((labels.sum(1) == 1).all())
    if task == "multilabel" or (task is None and not one_hot):
        return labels.astype(np.float32), "multilabel", known
    if not one_hot:
        raise ValueError(f"{place} should have a single 1 in each row where `task = multiclass`.")
    remarks.append("Each sample has one of the labels: they are classes. If they are not: --data.task multilabel.")
    return labels.argmax(1).astype(np.int64), "multiclass", known


def _splits(reader: _Reader, layout: ArrayLayout, count: int) -> np.ndarray | None:
    """Name of the split of each sample."""
    if reader.split_of_rows is not None:
        if layout.split is not None:
            raise ValueError("Parameter `split` should be left out where each split has arrays of its own.")
        return reader.split_of_rows
    if layout.split is None:
        return None
    values = _flat(reader.read(layout.split, "split"), count, "split")
    if layout.split_values is None:
        words = np.char.lower(np.char.strip(values)) if values.dtype.kind == "U" else values
        unknown = [value for value in np.unique(words).tolist() if value not in SPLIT_WORDS]
        if unknown:
            raise ValueError(
                f"Parameter `split` should name an array of the words train, val and test, unless `split_values` says "
                f"what its values mean, as in {{train: 0, test: 1}}. Found {unknown[:5]} in '{layout.split}'."
            )
        return np.array([SPLIT_WORDS[word] for word in words.tolist()])
    splits = np.full(count, "", dtype="<U5")
    for split, value in layout.split_values.items():
        chosen = values == value if values.dtype.kind != "U" else values == str(value)
        if not np.any(chosen):
            raise ValueError(
                f"Parameter `split_values['{split}']` should be a value of '{layout.split}', of "
                f"{np.unique(values).tolist()[:5]}. Found {value!r}."
            )
        splits[cast("np.ndarray", chosen)] = split
    return splits
