"""Data sets by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmlr._checks import check_choice
from bmlr.data._base import (
    SPLITS,
    ArraySplit,
    Modality,
    MultimodalData,
    Preprocessing,
    Split,
    SplitName,
    TrainingDefaults,
)
from bmlr.data._selection import SelectedModalities
from bmlr.data.store._options import PrepareOptions, PrepareResult

if TYPE_CHECKING:
    from bmlr.data.sets._datasets import DatasetData

# Module and class of each data set. Imported on demand: most need more than torch and numpy.
_DATA: dict[str, tuple[str, str]] = {
    "digits": ("bmlr.data.sets._digits", "Digits"),
    "avmnist": ("bmlr.data.sets._avmnist", "AVMNIST"),
    "crema-d": ("bmlr.data.sets._crema_d", "CREMAD"),
    "kinetics-sounds": ("bmlr.data.sets._kinetics_sounds", "KineticsSounds"),
    "ave": ("bmlr.data.sets._ave", "AVE"),
    "ucf-101": ("bmlr.data.sets._listed", "UCF101"),
    "food-101": ("bmlr.data.sets._listed", "Food101"),
    "mvsa-single": ("bmlr.data.sets._listed", "MVSASingle"),
    "mosi": ("bmlr.data.sets._sentiment", "MOSI"),
    "mosei": ("bmlr.data.sets._sentiment", "MOSEI"),
    "ch-sims": ("bmlr.data.sets._sentiment", "CHSIMS"),
    "ur-funny": ("bmlr.data.sets._sentiment", "URFunny"),
    "mustard": ("bmlr.data.sets._sentiment", "MUStARD"),
    "wiki": ("bmlr.data.sets._published_arrays", "Wiki"),
    "mfeat": ("bmlr.data.sets._published_arrays", "MFeat"),
    "mmmo": ("bmlr.data.sets._published_arrays", "MMMO"),
    "mosi-utterances": ("bmlr.data.sets._published_arrays", "MOSIUtterances"),
    "synthetic": ("bmlr.data.sets._synthetic", "Synthetic"),
    "manifest": ("bmlr.data.sets._manifest", "Manifest"),
    "arrays": ("bmlr.data.sets._arrays", "Arrays"),
}


def __getattr__(name: str) -> type[MultimodalData]:
    if name == "DatasetData":
        from bmlr.data.sets._datasets import DatasetData

        return DatasetData
    for data, (_, class_name) in _DATA.items():
        if name == class_name:
            return get(data)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def available() -> list[str]:
    """Names of all data sets.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.available()[:2]
        ['digits', 'avmnist']
    """
    return list(_DATA)


def class_names() -> list[str]:
    """Names of the data sets' classes, without importing them.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.class_names()[:2]
        ['Digits', 'AVMNIST']
    """
    return [class_name for _, class_name in _DATA.values()]


def get(name: str) -> type[MultimodalData]:
    """Class of a data set by its name.

    Raises:
        ValueError: If the name is unknown; the message gives the nearest one.
    """
    check_choice("data", name, _DATA)
    module, class_name = _DATA[name]
    data_class: type[MultimodalData] = getattr(importlib.import_module(module), class_name)
    return data_class


def create(name: str, **parameters: Any) -> MultimodalData:
    """Make a data set by its name.

    Raises:
        ValueError: If the name is unknown or a parameter is out of its range.
    """
    return get(name)(**parameters)


def from_datasets(train: Any, val: Any, test: Any, **parameters: Any) -> DatasetData:
    """A data set of torch or Hugging Face datasets whose items are dictionaries, which are taken as they are.

    ``train``, :class:`bmlr.Balancer` and the diagnosis take it. All items are read once: to tell the form of every
    modality, the task, and a checksum by which runs know their data.

    * A value is a tensor, an array, lists of numbers, an image of Pillow or a text; None, or a key that is left out,
      is a modality that the sample lacks. A value with no or one dimension is a vector, with two a sequence (T, d),
      with three an image (C, H, W), with four frames (T, C, H, W). Texts become indices of the words of the training
      split. Integers under a key that ends in ``ids`` or ``tokens`` are such indices, 0 being padding. ``forms`` says
      what else a value is.
    * A target is a text or an integer (a class), a list of texts or of zeros and ones (labels), a float or a list of
      floats (numbers); ``task`` says what else it is.

    Args:
        train: Training split: a dataset with a length and items by position.
        val: Validation split.
        test: Test split.
        **parameters: ``modalities``, names that are keys of the dictionaries, or keys by name; ``target``, key of the
            target (``label``); ``group``, key of the group; ``task``; ``classes``, their names; ``forms``, a
            :class:`Modality` by name; ``max_tokens`` of a text (256); ``name`` in tables and runs.

    Raises:
        ValueError: If a parameter is wrong. What is wrong with an item is told by ``prepare()``.

    Example:
        >>> import torch, bmlr
        >>> def items(number):
        ...     return [{"sensor": torch.randn(4), "note": "a red bird" if n % 2 else "a dog", "label": n % 2}
        ...             for n in range(number)]
        >>> data = bmlr.data.from_datasets(items(8), items(4), items(4), modalities=["sensor", "note"])
        >>> data.prepare()
        >>> data.task, data.modalities["note"].kind, data.split("train").batch([0, 1]).targets
        (Multiclass(num_classes=2, class_weights=None, label_smoothing=0.0, ignore_index=None), 'text', tensor([0, 1]))
    """
    from bmlr.data.sets._datasets import DatasetData

    return DatasetData(train, val, test, **parameters)


def prepare(name: str, source: Path, dest: Path, options: PrepareOptions | None = None) -> PrepareResult:
    """Decode published files once, into a folder for training.

    Args:
        name: Name of the data set.
        source: The published folder or file, or the table.
        dest: Folder in which the folder of the prepared data is made.
        options: Options.

    Raises:
        FileNotFoundError: If a folder or list is missing.
        ValueError: If the name or an option is wrong, or too many samples are rejected.
    """
    from bmlr.data.sets._stored import StoredData  # needs more than torch and numpy

    stored = {data: cls for data in _DATA if issubclass(cls := get(data), StoredData)}
    if name in _DATA and name not in stored:
        raise ValueError(
            f"Data set '{name}' needs no preparation: inspect and train read it as it is. Prepared are "
            f"{', '.join(stored)}."
        )
    check_choice("data", name, stored)
    return stored[name].convert(Path(source).expanduser(), Path(dest).expanduser(), options or PrepareOptions())


__all__ = [
    "SPLITS",
    "ArraySplit",
    "Modality",
    "MultimodalData",
    "PrepareOptions",
    "PrepareResult",
    "Preprocessing",
    "SelectedModalities",
    "Split",
    "SplitName",
    "TrainingDefaults",
    "available",
    "class_names",
    "create",
    "from_datasets",
    "get",
    "prepare",
]
