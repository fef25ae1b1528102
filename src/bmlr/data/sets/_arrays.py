"""Data of one's own, from one file of named arrays."""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import (
    SPLITS,
    ArraySplit,
    Modality,
    MultimodalData,
    Preprocessing,
    SplitName,
    TrainingDefaults,
    check_files,
)
from bmlr.data._group_split import check_filled, check_fractions, check_groups, split_by_group, with_validation
from bmlr.data.readers._arrays import load_numbers
from bmlr.data.readers._named_arrays import open_arrays
from bmlr.data.readers._text import TextReader, bytes_to_text, is_text
from bmlr.data.sets._array_content import ArrayContent, read_content
from bmlr.data.sets._array_layout import ArrayLayout
from bmlr.data.sets._forms import Form
from bmlr.data.sets._standardise import block_statistics
from bmlr.data.store._targets import make_task
from bmlr.data.transforms._tfidf import TfIdf
from bmlr.tables import format_count
from bmlr.tasks import Task


class _FileSplit(ArraySplit):
    """A split of one file of arrays.

    Args:
        inputs: One array per modality, shape (N, …).
        targets: Targets, shape (N, …).
        groups: Group of each sample.
        written: Texts that inputs were made of, shape (N,), by modality.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        targets: np.ndarray,
        *,
        groups: Sequence[str] | None,
        written: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(inputs, targets, groups=groups)
        self.written = written

    def texts(self, name: str, indices: Sequence[int]) -> list[str] | None:
        """The texts of a modality as they were written; None of other modalities."""
        return self.written[name][list(indices)].tolist() if name in self.written else None


class ArrayData(MultimodalData):
    """A data set that is one file of named arrays.

    A subclass says which file, and what its arrays are.

    Args:
        protocol: ``clean`` or ``paper``.
        standardise: Shift and scale each feature to mean 0 and standard deviation 1 of the training split; time steps
            of zeros are padding and stay zero.
        words: Most words of texts, which become tf-idf vectors.
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction drawn for validation, in (0, 1).
        test_fraction: Fraction drawn for testing, in (0, 1), where the file has no split.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    defaults: TrainingDefaults = TrainingDefaults(epochs=20, batch_size=64, lr=1e-3, width=16)

    def __init__(
        self,
        *,
        protocol: Literal["clean", "paper"],
        standardise: bool,
        words: int,
        split_seed: int,
        val_fraction: float,
        test_fraction: float = 0.1,
    ) -> None:
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        self.standardise = standardise
        self.words = check_integer("words", words, 1)
        self.split_seed = check_integer("split_seed", split_seed, 0)
        check_fractions(val_fraction, test_fraction, positive=True)
        self.val_fraction, self.test_fraction = float(val_fraction), float(test_fraction)
        self.classes = ()
        self.modalities = {}
        self._task_name = "multiclass"
        self.remarks: list[str] = []

    @abstractmethod
    def _source(self) -> tuple[Path, ArrayLayout]:
        """The file and the names of its arrays.

        Raises:
            FileNotFoundError: If there is none.
        """

    @abstractmethod
    def _split_rows(self, content: ArrayContent, groups: list[str]) -> dict[SplitName, np.ndarray]:
        """Indices of the samples of each split; of validation none where the file has none."""

    def _group_names(self, content: ArrayContent) -> np.ndarray | None:
        """Group of each sample."""
        return content.groups

    @functools.cached_property
    def _content(self) -> ArrayContent:
        path, layout = self._source()
        return read_content(open_arrays(path), layout)

    @functools.cached_property
    def _groups(self) -> np.ndarray | None:
        return self._group_names(self._content)

    @functools.cached_property
    def _rows(self) -> dict[SplitName, np.ndarray]:
        content, known = self._content, self._groups
        groups = [str(row) for row in range(len(content.targets))] if known is None else known.tolist()
        rows = self._split_rows(content, groups)
        check_filled(rows, ("train", "test"), self.name)
        return with_validation(rows, groups, content.targets, val_fraction=self.val_fraction, seed=self.split_seed)

    @functools.cached_property
    def _texts(self) -> dict[str, TfIdf]:
        train, texts = self._rows["train"], {}
        for name, values in self._content.values.items():
            if values.dtype.kind == "U":
                subject = f"The texts of '{name}' in the training split of {self.name}"
                texts[name] = TfIdf.of_texts(values[train].tolist(), self.words, subject)
        return texts

    @functools.cached_property
    def _forms(self) -> dict[str, Form]:
        forms = {}
        for name, values in self._numbers.items():
            padded, train = values.ndim == 3, self._rows["train"]
            statistics = block_statistics(
                lambda values=values, train=train: [values[train]],  # type: ignore[misc]
                padded=padded,
                name=name,
                place=self.name,
            )
            if constant := int((values[train] == values[train][:1, ...]).all(0).all(tuple(range(padded))).sum()):
                self.remarks.append(f"{constant} of {values.shape[-1]} features of '{name}' are constant in training.")
            modality = Modality("sequence" if padded else "vector", values.shape[1:])
            forms[name] = Form(modality, statistics if self.standardise else None)
        return forms

    @functools.cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        """Values of each modality, texts as vectors."""
        return {
            name: self._texts[name].vectors(values.tolist()) if name in self._texts else values
            for name, values in self._content.values.items()
        }

    def prepare(self) -> None:
        """Read and check the file; sets ``classes`` and ``modalities``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If an array is missing or cannot be used; the message names it.
        """
        if self.modalities:
            return
        content = self._content
        forms = self._forms
        self.classes, self._task_name = content.classes, content.task
        self.remarks[:0] = content.remarks
        if content.task == "multiclass":
            trained = set(content.targets[self._rows["train"]].tolist())
            if lacking := [name for index, name in enumerate(content.classes) if index not in trained]:
                warnings.warn(f"No training sample is of class {', '.join(lacking[:5])}.", stacklevel=2)
        self.modalities = {name: form.modality for name, form in forms.items()}

    @property
    def content_digest(self) -> str:
        """SHA-256 checksum of all samples."""
        return self._content.digest

    @property
    def task(self) -> Task:
        """Task of the labels."""
        return make_task(self._task_name, self.classes)

    def split(self, name: SplitName) -> ArraySplit:
        """One split."""
        check_choice("name", name, SPLITS)
        self.prepare()
        rows = self._rows[name]
        inputs = {modality: form.standardised(self._numbers[modality][rows]) for modality, form in self._forms.items()}
        groups = None if self._groups is None else self._groups[rows].tolist()
        written = {modality: self._content.values[modality][rows] for modality in self._texts}
        return _FileSplit(inputs, self._content.targets[rows], groups=groups, written=written)

    def load_files(self, files: Mapping[str, Any], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, made as those of training.

        Args:
            files: Per modality a ``.npy`` file of one vector (D) or sequence (T, D); of a text a ``.txt`` file or the
                text itself.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file has another shape or is not finite, or ``files`` does not name what is needed.
        """
        names = modalities or self._forms
        check_files(files, names)
        inputs = {}
        for name in names:
            form, file = self._forms[name], files[name]
            if name in self._texts:
                text = str(file) if is_text(str(file)) else bytes_to_text(TextReader()(Path(file)).values)
                values = self._texts[name].vectors([text])[0]
            else:
                values = load_numbers(Path(file)).astype(np.float32)
            sequence = form.modality.kind == "sequence"
            if values.ndim != len(form.modality.shape) or values.shape[sequence:] != form.modality.shape[sequence:]:
                raise ValueError(f"{file} should have shape {form.modality.shape} as '{name}'. Found {values.shape}.")
            if not np.isfinite(values).all():
                raise ValueError(f"{file} should be finite. Found NaN or infinity.")
            inputs[name] = torch.from_numpy(form.standardised(values[None]))
        return inputs

    def preprocessing(self) -> Preprocessing:
        """Statistics of the training split, and words of texts."""
        texts = {name: {"words": list(t.words), "weights": list(t.weights)} for name, t in self._texts.items()}
        statistics = {name: form.statistics for name, form in self._forms.items() if form.statistics is not None}
        return Preprocessing(self.classes, self.modalities, {"task": self._task_name, "texts": texts}, statistics)

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Read new files by what a run has kept."""
        self.classes, self.modalities = preprocessing.classes, dict(preprocessing.modalities)
        self._task_name = preprocessing.entries["task"]
        self._texts = {name: TfIdf(**entry) for name, entry in preprocessing.entries["texts"].items()}
        self._forms = {
            name: Form(modality, preprocessing.arrays.get(name)) for name, modality in self.modalities.items()
        }


def listed_rows(splits: np.ndarray) -> dict[SplitName, np.ndarray]:
    """Indices of the samples of each split by its name."""
    return {name: np.flatnonzero(splits == name) for name in SPLITS}


class Arrays(ArrayData):
    """Data of one's own, from one file of named arrays.

    The file is one of NumPy (npz), safetensors, HDF5 (with h5py) or MATLAB. What its arrays are is said by parameters,
    or by entries of the same names in a YAML file beside it (``x.yaml`` beside ``x.npz``). A parameter counts more.

    * An array (N, D) holds vectors, (N, T, D) sequences whose time steps of zeros are padding, texts (N) become tf-idf
      vectors. In a MATLAB file samples may be columns: the number of labels decides. Its cell ``X`` of matrices is a
      modality for each.
    * Integers and texts are classes, zeros and ones (N, L) one-hot classes or several labels, floating-point numbers
      are numbers to predict.
    * The splits are those of ``split``; or of the names, where ``x_train``, ``x_test`` and perhaps ``x_val`` are there
      in place of ``x`` (``*_x`` where the word stands elsewhere); or they are drawn by group, with the classes in
      proportion. Where there is no validation split, ``val_fraction`` of training becomes it.

    With ``protocol="clean"`` a group in two splits is refused, with ``"paper"`` the split is taken as it is.

    Args:
        file: The file.
        modalities: Array of each modality, by name.
        labels: Array of the labels.
        split: Array that says the split of each sample, by the words train, val and test.
        split_values: Value of ``split`` for each split, where it holds others; samples of none are left out.
        groups: Array of the speaker, patient or source of each sample.
        classes: Array of the names of the classes.
        lengths: Array of the number of time steps, by modality.
        task: What the labels are, where it is other than their form says.
        samples: Whether samples are ``rows`` or ``columns``, where it is other than the shapes say.
        protocol: ``clean`` or ``paper``.
        resplit: Draw all splits, whatever the file says.
        standardise: Shift and scale each feature by the training split.
        words: Most words of a text's tf-idf vector.
        split_seed: Seed of the drawn splits.
        val_fraction: Fraction drawn for validation, in (0, 1).
        test_fraction: Fraction drawn for testing, in (0, 1).

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("arrays", file="x.npz", modalities={"image": "x1", "text": "x2"}, labels="y")
        >>> data.hparams["labels"], data.modalities  # reads no file yet
        ('y', {})
    """

    name: ClassVar[str] = "arrays"
    location_parameters: ClassVar[frozenset[str]] = frozenset({"file"})

    def __init__(  # noqa: PLR0913
        self,
        file: str | Path,
        *,
        modalities: dict[str, str] | None = None,
        labels: str | None = None,
        split: str | None = None,
        split_values: dict[str, int | str] | None = None,
        groups: str | None = None,
        classes: str | None = None,
        lengths: dict[str, str] | None = None,
        task: Literal["multiclass", "multilabel", "regression"] | None = None,
        samples: Literal["rows", "columns"] | None = None,
        protocol: Literal["clean", "paper"] = "clean",
        resplit: bool = False,
        standardise: bool = True,
        words: int = 1000,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            protocol=protocol,
            standardise=standardise,
            words=words,
            split_seed=split_seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
        )
        self.file = str(Path(file).expanduser())
        self.layout = ArrayLayout(modalities, labels, split, split_values, groups, classes, lengths, task, samples)
        self.resplit = resplit

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name."""
        names = ("file", "protocol", "resplit", "standardise", "words", "split_seed", "val_fraction", "test_fraction")
        return {**{name: getattr(self, name) for name in names}, **self.layout.given()}

    def _source(self) -> tuple[Path, ArrayLayout]:
        path = Path(self.file)
        return path, self.layout.beside(path)

    def _split_rows(self, content: ArrayContent, groups: list[str]) -> dict[SplitName, np.ndarray]:
        if content.splits is None or self.resplit:
            if self.protocol == "paper":
                raise ValueError(
                    f"Parameter `protocol` cannot be 'paper' where splits are drawn, as those of {self.file} are."
                )
            return split_by_group(
                groups,
                content.targets,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.split_seed,
            )
        rows = listed_rows(content.splits)
        if unlisted := len(content.splits) - sum(map(len, rows.values())):
            warnings.warn(f"{self.file}: {format_count(unlisted, 'sample')} in no split left out.", stacklevel=2)
        if self.protocol == "clean":
            check_groups(rows, groups, "The file")
        return rows
