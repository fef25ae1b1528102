"""Classes by their path, registered or imported by the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import bmlr.data
import bmlr.methods
from bmlr._checks import nearest_name
from bmlr.data import MultimodalData
from bmlr.methods import Method

T = TypeVar("T")

#: Base classes of other libraries, with the module that holds their classes and what they are called.
_LIBRARIES = {
    "LRScheduler": ("torch.optim.lr_scheduler", "schedule"),
    "Logger": ("lightning.pytorch.loggers", "logger"),
}


def resolve_class(name: str, base: type[T]) -> type[T]:
    """Find a registered or already imported class by its name or path.

    Raises:
        ValueError: If there is none; the message gives the nearest name.
    """
    registry, names, kind = _registry(base)
    short, module = name.rpartition(".")[2], name.rpartition(".")[0]
    registered = {registered_name: f"{registry}.{registered_name}" for registered_name in names}
    if short in registered and name in {short, registered[short]}:
        return getattr(importlib.import_module(registry), short)  # type: ignore[no-any-return]
    cls = getattr(sys.modules.get(module), short, None)
    if isinstance(cls, type) and issubclass(cls, base):
        return cls
    if not module or module == registry or module.startswith("bmlr."):
        raise ValueError(
            f"There is no {kind} '{name}'.{nearest_name(short, registered)} Registered are {', '.join(registered)}."
        )
    if module in sys.modules:
        raise ValueError(f"The module {module} should hold the {kind} {short}. It has no such class.")
    raise ValueError(
        f"'{name}' is a {kind} of your own: import its module first, on the command line by --import {module}."
    )


def _registry(base: type) -> tuple[str, Sequence[str], str]:
    """Module and names of the registered classes, and what they are called."""
    if issubclass(base, Method):
        return "bmlr.methods", bmlr.methods.available(), "method"
    if issubclass(base, MultimodalData):
        return "bmlr.data", bmlr.data.class_names(), "data set"
    module, kind = _LIBRARIES[base.__name__]
    found = vars(importlib.import_module(module))
    classes = [name for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, base)]
    return module, [name for name in classes if name != base.__name__ and not name.startswith("_")], kind


def class_path(cls: type) -> str:
    """Public path of a class.

    Of a class of the library it is its package and name.
    """
    module = cls.__module__
    if module.startswith("bmlr."):
        module = ".".join(module.split(".")[:2])
    return f"{module}.{cls.__qualname__}"


def class_entry(instance: MultimodalData | Method) -> dict[str, Any]:
    """Class path and parameters of an object, as plain data."""
    return {"class_path": class_path(type(instance)), "init_args": plain_data(instance.hparams)}


def make_class(entry: Any, base: type[T], where: str, hint: str = "") -> T:
    """Make the object that a class entry describes.

    ``hint`` ends the message where its parameters do not fit.
    """
    if not isinstance(entry, dict) or not {"class_path"} <= set(entry) <= {"class_path", "init_args"}:
        raise ValueError(f"{where} should have the entries class_path and init_args. Found {entry!r}.{hint}")
    cls = resolve_class(str(entry["class_path"]), base)
    try:
        return cls(**(entry.get("init_args") or {}))
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error
    except Exception as error:  # whatever parameters of wrong types cause in any class
        raise ValueError(f"{where}: {error}{hint}") from error


def plain_data(value: Any) -> Any:
    """Nested values as YAML and JSON hold them."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, Path) else value
