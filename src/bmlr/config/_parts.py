"""Encoders, fusions and models by their path: entries of a configuration, and the objects they describe."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from torch import nn

from bmlr import encoders, fusion
from bmlr._checks import nearest_name
from bmlr.config._classes import plain_data
from bmlr.config._file import load_plain_yaml
from bmlr.fusion import Fusion
from bmlr.model import MultimodalClassifier

Kind = Literal["encoder", "fusion", "model"]
#: Path, arguments and, of a pretrained encoder, its checkpoint.
Entry = dict[str, Any]
T = TypeVar("T", bound=nn.Module)

#: Packages whose classes are found without the user's help.
_LIBRARIES = {"bmlr", "torch", "lightning"}
_BASES: dict[str, type[nn.Module]] = {"encoder": nn.Module, "fusion": Fusion, "model": MultimodalClassifier}
_BASE_NAMES = {"encoder": "torch.nn.Module", "fusion": "bmlr.fusion.Fusion", "model": "bmlr.MultimodalClassifier"}
#: Modules and functions of the user's own choice. A file may name functions of these alone: any other function that
#: is imported somewhere, such as os.system, would run with the arguments of the file.
_trusted: set[str] = set()


def import_user_module(module: str) -> None:
    """Import a module that the user names, from where Python finds it or from the working directory.

    Configurations may name its functions from then on, not only its classes.

    Raises:
        ImportError: If it cannot be imported.
    """
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)  # after all others, as `python -m bmlr` does
    importlib.import_module(module)
    if module.partition(".")[0] != "bmlr":
        _trusted.add(module)


def read_part(value: Any, where: str) -> Entry:
    """Path and arguments of an encoder, a fusion or a model, however they are given.

    Args:
        value: A class, a function, a ``functools.partial`` of one, ``module.Class``, ``module.Class:width=8``, or a
            mapping of ``class_path`` and ``init_args``.
        where: Subject of the message.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> read_part("mymodel.Net:width=8", "Parameter `fusion`")
        {'class_path': 'mymodel.Net', 'init_args': {'width': 8}}
    """
    entry: Entry
    if isinstance(value, str):
        pretrained = re.fullmatch(r"((?:hf|timm)/.*?)((?::\w+=[^,]*(?:,\w+=[^,]*)*)?)", value)
        name, parameters = split_specification(f"_{pretrained[2]}" if pretrained else value, where)
        name = pretrained[1] if pretrained else name  # which may hold a colon, as in timm/hf-hub:owner/name
        entry = {"class_path": name, "init_args": {key: load_plain_yaml(text) for key, text in parameters.items()}}
    elif isinstance(value, Mapping):
        if "class_path" not in value or not set(value) <= {"class_path", "init_args", "checkpoint"}:
            raise ValueError(f"{where} should have the entries class_path and init_args. Found {dict(value)!r}.")
        entry = {"class_path": value["class_path"], "init_args": plain_data(value.get("init_args") or {})}
        if "checkpoint" in value:
            entry["checkpoint"] = value["checkpoint"]
    elif isinstance(value, functools.partial) and not value.args:
        entry = {"class_path": value.func, "init_args": plain_data(value.keywords)}
    elif callable(value) and not isinstance(value, nn.Module):
        entry = {"class_path": value, "init_args": {}}
    else:
        raise ValueError(
            f"{where} should be a name, a class or a function. Found an object of type {type(value).__name__}: a "
            "finished model is given to bmlr.training.train() as a whole."
        )
    if callable(entry["class_path"]):
        entry["class_path"] = _path_of(entry["class_path"], where)
    if not isinstance(entry["class_path"], str) or not isinstance(entry["init_args"], dict):
        raise ValueError(f"{where} should have a path as class_path, and init_args by name. Found {value!r}.")
    try:
        yaml.safe_dump(entry["init_args"])
    except yaml.YAMLError as error:
        raise ValueError(
            f"{where} should have arguments that a file can hold: numbers, text and lists. Found {entry['init_args']}."
        ) from error
    return entry


def split_specification(text: str, where: str) -> tuple[str, dict[str, str]]:
    """Name and parameters of ``NAME`` or ``NAME:parameter=value,parameter=value``.

    Raises:
        ValueError: If the text is neither; its message begins with ``where``.
    """
    name, separator, listed = text.partition(":")
    items = [item for item in listed.split(",") if item.strip()]
    pairs = [item.partition("=") for item in items]
    if not name.strip() or (separator and not items) or any(not key.strip() or not equals for key, equals, _ in pairs):
        raise ValueError(f"{where} should be written NAME or NAME:parameter=value,parameter=value. Found '{text}'.")
    parameters = {key.strip(): value.strip() for key, _, value in pairs}
    if len(parameters) < len(pairs):
        raise ValueError(f"{where} should name every parameter once. Found '{text}'.")
    return name.strip(), parameters


def kind_of(option: str) -> Kind:
    """What an option of the model names.

    Example:
        >>> kind_of("encoders.image")
        'encoder'
    """
    kinds: dict[str, Kind] = {"fusion": "fusion", "net": "model"}
    return kinds.get(option, "encoder")


def own_modules(entries: Iterable[Entry]) -> list[str]:
    """Modules of the user's that entries name, each once."""
    modules = (entry["class_path"].rpartition(".")[0] for entry in entries if "/" not in entry["class_path"])
    return [module for module in dict.fromkeys(modules) if module and module.partition(".")[0] not in _LIBRARIES]


def make_part(kind: Kind, entry: Entry, base: type[T], *arguments: Any, **offered: Any) -> T:
    """Make the object that an entry describes.

    Args:
        kind: What it is.
        entry: Its path and arguments.
        base: Class that it should be derived from.
        *arguments: Positional arguments.
        **offered: Arguments that it gets if its signature names them, and the entry does not.

    Raises:
        ValueError: If there is no such class or function, its arguments do not fit, or it makes something else.
    """
    path = entry["class_path"]
    make = find_part(kind, path)
    try:
        names = inspect.signature(make).parameters
    except ValueError:  # a class whose signature Python cannot tell
        names = {}  # type: ignore[assignment]
    given = {name: value for name, value in offered.items() if name in names} | entry["init_args"]
    try:
        made = make(*arguments, **given)
    except Exception as error:  # whatever arguments of wrong types cause in any class
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{kind.capitalize()} {path} cannot be made: {reason}.") from error
    if not isinstance(made, base):
        raise ValueError(
            f"{kind.capitalize()} {path} should make a {_BASE_NAMES[kind]}. "
            f"Found an object of type {type(made).__name__}."
        )
    return made


def find_part(kind: Kind, path: str) -> Callable[..., Any]:
    """Class or function of a path, registered or imported by the user; nothing is imported here.

    Raises:
        ValueError: If there is none; the message gives the nearest name, or says what to import.
    """
    module, _, name = path.rpartition(".")
    registered = {"encoder": encoders.__all__, "fusion": [], "model": []}[kind]
    if name in registered and module in {"", "bmlr.encoders"}:
        return getattr(encoders, name)  # type: ignore[no-any-return]
    found = getattr(sys.modules.get(module), name, None)
    if isinstance(found, type) and issubclass(found, _BASES[kind]):
        return found
    article = "an" if kind == "encoder" else "a"
    if callable(found) and not isinstance(found, type):
        if module in _trusted or path in _trusted:
            return found  # type: ignore[no-any-return]
        raise ValueError(
            f"'{path}' is a function, which a configuration may name once you have named its module: on the command "
            f"line by --import {module}, in Python by giving the function itself."
        )
    if not module or module.partition(".")[0] == "bmlr":
        names = [*registered, *(fusion.available() if kind == "fusion" else ())]
        listed = f" Registered are {', '.join(names)}." if names else ""
        raise ValueError(
            f"There is no {kind} '{path}'.{nearest_name(name, names)}{listed} One of yours is written module.Class."
        )
    if module in sys.modules:
        near = nearest_name(name, [key for key, value in vars(sys.modules[module]).items() if callable(value)])
        raise ValueError(
            f"The module {module} should hold the {kind} {name}, a class derived from {_BASE_NAMES[kind]}, or a "
            f"function. It has none.{near}"
        )
    raise ValueError(
        f"'{path}' is {article} {kind} of your own: import its module first, on the command line by --import {module}."
    )


def _path_of(part: Any, where: str) -> str:
    """Path of a class or function that was given as an object, whose module is trusted for that."""
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", "<object>")
    if not module or "<" in name or "." in name or getattr(sys.modules.get(module), name, None) is not part:
        raise ValueError(
            f"{where} should be a class or a function at the top of a module, by whose path a run is read back. "
            f"Found {name}."
        )
    if module.startswith("bmlr."):
        module = ".".join(module.split(".")[:2])
    _trusted.add(f"{module}.{name}")
    return f"{module}.{name}"
