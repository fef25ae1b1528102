"""Data sets by name, each with its protocols; all give the same batches."""

from __future__ import annotations

import importlib
from typing import Any

from bmlr._checks import nearest_name
from bmlr.data._base import SPLITS, ArraySplit, Modality, MultimodalData, Split, SplitName, TrainingDefaults
from bmlr.data._selection import SelectedModalities

# Where each data set is defined; imported when asked for, since they need more than torch and numpy.
_DATA: dict[str, tuple[str, str]] = {
    "digits": ("bmlr.data.sets._digits", "Digits"),
    "avmnist": ("bmlr.data.sets._avmnist", "AVMNIST"),
    "crema-d": ("bmlr.data.sets._audiovisual", "CREMAD"),
    "kinetics-sounds": ("bmlr.data.sets._audiovisual", "KineticsSounds"),
    "ave": ("bmlr.data.sets._audiovisual", "AVE"),
    "mosi": ("bmlr.data.sets._sentiment", "MOSI"),
    "mosei": ("bmlr.data.sets._sentiment", "MOSEI"),
    "synthetic": ("bmlr.data.sets._synthetic", "Synthetic"),
    "table": ("bmlr.data.sets._table", "TableData"),
}


def __getattr__(name: str) -> type[MultimodalData]:
    for module, attribute in _DATA.values():
        if name == attribute:
            found: type[MultimodalData] = getattr(importlib.import_module(module), attribute)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def available() -> list[str]:
    """Names that :func:`get` and :func:`create` take.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.available()[:2]
        ['digits', 'avmnist']
    """
    return list(_DATA)


def class_names() -> list[str]:
    """Names of the data sets' classes, known without importing them.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.class_names()[:2]
        ['Digits', 'AVMNIST']
    """
    return [attribute for _, attribute in _DATA.values()]


def get(name: str) -> type[MultimodalData]:
    """The class of a data set by its name.

    Raises:
        ValueError: If the name is unknown; the message gives the nearest one.
    """
    if name not in _DATA:
        raise ValueError(
            f"Parameter `data` should be one of {', '.join(_DATA)}. Found `data = {name!r}`.{nearest_name(name, _DATA)}"
        )
    module, attribute = _DATA[name]
    found: type[MultimodalData] = getattr(importlib.import_module(module), attribute)
    return found


def create(name: str, **parameters: Any) -> MultimodalData:
    """Make a data set by its name.

    Raises:
        ValueError: If the name is unknown or a parameter is out of its range.
    """
    return get(name)(**parameters)


__all__ = [
    "SPLITS",
    "ArraySplit",
    "Modality",
    "MultimodalData",
    "SelectedModalities",
    "Split",
    "SplitName",
    "TrainingDefaults",
    "available",
    "class_names",
    "create",
    "get",
]
