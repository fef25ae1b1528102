"""Classes that options name: found by name, or imported from the user's modules."""

from __future__ import annotations

import sys
from typing import Any

import bmlr.data
import bmlr.methods
from bmlr._checks import nearest_name
from bmlr.commands.options import CLASSES


def import_user_modules(module: str) -> None:
    """Import modules of the user's, one or several with commas."""
    for name in module.split(","):
        import_module(name.strip(), "Option --import")


def import_module(module: str, where: str) -> None:
    """Import a module that the user named.

    Raises:
        ValueError: If it cannot be imported; the message begins with ``where``.
    """
    from bmlr.config import import_user_module

    try:
        import_user_module(module)
    except ImportError as error:
        raise ValueError(f"{where}: {module} cannot be imported: {error}.") from error


def resolve_class(option: str, name: str, where: str) -> type:
    """Class of a registered name, or of a path such as ``module.Class``.

    Raises:
        ValueError: If there is none; the message gives the nearest name.
    """
    registry: Any = bmlr.data if option == "data" else bmlr.methods
    base = CLASSES[option]
    if "." not in name:
        if option == "data" and name in bmlr.data.class_names():
            return getattr(bmlr.data, name)  # type: ignore[no-any-return]
        try:
            return registry.get(name)  # type: ignore[no-any-return]
        except ValueError as error:
            names = registry.available()
            raise ValueError(
                f"{where} should be one of {', '.join(names)}, or a class of yours as module.Class. "
                f"Found {name}.{nearest_name(name, names)}"
            ) from error
    module, _, class_name = name.rpartition(".")
    import_module(module, where)
    cls = getattr(sys.modules[module], class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(
            f"{where}: {name} should be a class derived from {base.__module__.split('._')[0]}.{base.__name__}."
        )
    return cls


def noun(prefix: str) -> str:
    """What an option names, in messages."""
    return "a data set" if prefix == "data" else "a method"


def class_name(cls: type) -> str:
    """Name of a data set or method in messages."""
    if issubclass(cls, CLASSES["data"]):
        names = [
            name
            for name, class_name in zip(bmlr.data.available(), bmlr.data.class_names(), strict=True)
            if class_name == cls.__name__
        ]
        return f"Data set {names[0] if names and cls.__module__.startswith('bmlr.') else cls.__name__}"
    return f"Method {cls.__name__}"
