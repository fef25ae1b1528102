"""Classes by their path, registered or imported by the user."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import bmlr.data
import bmlr.methods
from bmlr._checks import nearest_name
from bmlr.data import MultimodalData
from bmlr.methods import Method

T = TypeVar("T")


def resolve_class(name: str, base: type[T]) -> type[T]:
    """Find a registered or already imported class by its name or path.

    Raises:
        ValueError: If there is none; the message gives the nearest name.
    """
    short = name.rpartition(".")[2]
    registry: Any = bmlr.methods if issubclass(base, Method) else bmlr.data
    names = bmlr.methods.available() if issubclass(base, Method) else bmlr.data.class_names()
    registered = {registered_name: f"{registry.__name__}.{registered_name}" for registered_name in names}
    if short in registered and name in {short, registered[short]}:
        return getattr(registry, short)  # type: ignore[no-any-return]
    cls = getattr(sys.modules.get(name.rpartition(".")[0]), short, None)
    if isinstance(cls, type) and issubclass(cls, base):
        return cls
    module = name.rpartition(".")[0]
    kind = "method" if issubclass(base, Method) else "data set"
    if not module or module.startswith("bmlr."):
        raise ValueError(
            f"There is no {kind} '{name}'.{nearest_name(short, registered)} Registered are {', '.join(registered)}."
        )
    if module in sys.modules:
        raise ValueError(f"The module {module} should hold the {kind} {short}. It has no such class.")
    raise ValueError(
        f"'{name}' is a {kind} of your own: import its module first, on the command line by --import {module}."
    )


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
