"""From the signature of a function to parsed options: names of classes, lists, switches, files of options."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, set_loader

import bmlr.data
import bmlr.methods
from bmlr.config import class_path, load_plain_yaml, read_plain_yaml
from bmlr.data import MultimodalData
from bmlr.methods import Method

# The parser's own reader of YAML expands aliases, by which a small file can fill the memory.
set_loader("plain", load_plain_yaml, exceptions=(yaml.YAMLError,))


def make_parser(name: str, description: str, function: Callable[..., Any]) -> ArgumentParser:
    """The parser of a command, with the parameters of ``function`` as options.

    Parameters without a default are positional, unless one of them is a data set: a class is an option to the parser.
    """
    parser = ArgumentParser(prog=f"bmlr {name}", description=description, exit_on_error=False, parser_mode="plain")
    hints = get_type_hints(function)
    if name == "train":
        parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    lists = {
        option: get_args(form)[0]
        for option, hint in hints.items()
        for form in (hint, *get_args(hint))  # list[T], or list[T] | None
        if get_origin(form) is list
    }
    parser.add_function_arguments(function, as_positional=not _class_options(hints), skip=set(lists))
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse(function.__doc__ or "").params}
    for option, kind in lists.items():
        required = inspect.signature(function).parameters[option].default is inspect.Parameter.empty
        parser.add_argument(option if required else f"--{option}", nargs="+", type=kind, help=texts[option])
    if hints.get("run") is Path:  # classes of a run are those imported before it is read
        parser.add_argument(
            "--import", metavar="MODULE", help="Module of the method or data set, if it is your own; runs its code."
        )
    return parser


def complete_arguments(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """The arguments as the parser takes them.

    Options get underscores (--train-list is --train_list), names of data sets and methods become paths of classes, the
    file of --config becomes its text, a switch alone (--resume) gets its value, and the data set may come first without
    --data.
    """
    hints = get_type_hints(function)
    switches = set(_switches(function))
    resolved = {"--config": "config"}
    for name in _class_options(hints):
        resolved |= {f"--{name}{suffix}": name for suffix in ("", ".help", ".class_path")}
    if arguments and not arguments[0].startswith("-") and "--data" in resolved:
        arguments = ["--data", *arguments]
    completed: list[str] = []
    base: str | None = None  # config, data or method, if the argument before was that option
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        if base and not argument.startswith("--"):
            completed.append(_resolve(base, argument))
            base = None
            continue
        option, separator, value = argument.partition("=")
        if re.fullmatch(r"--[a-z][\w.-]*", option):
            option = f"--{option[2:].replace('-', '_')}"
        base = resolved.get(option)
        if base and separator:
            value, base = _resolve(base, value), None
        completed.append(f"{option}{separator}{value}")
        if option in switches and not separator and following.casefold() not in {"true", "false", "yes", "no"}:
            completed.append("true")
    return completed


def import_user_module(module: str) -> None:
    """Import a module of the user's from where Python finds it, or from the working directory."""
    _search_working_directory()
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"Option --import: {module} cannot be imported: {error}.") from error


def _read_options(path: Path) -> str:
    """Text of a file of options, checked, with paths for the names of classes."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    _, content = read_plain_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold options by name. Found {type(content).__name__}.")
    for base in ("data", "method"):
        entry = content.get(base)
        if isinstance(entry, str):
            content[base] = _class_path(base, entry)
        elif isinstance(entry, dict) and isinstance(entry.get("class_path"), str):
            entry["class_path"] = _class_path(base, entry["class_path"])
    return yaml.safe_dump(content)


def _resolve(option: str, value: str) -> str:
    return _read_options(Path(value)) if option == "config" else _class_path(option, value)


def _class_path(base: str, name: str) -> str:
    """Path of the class of a registered name; names with a dot are paths already."""
    if "." in name:
        if not name.startswith("bmlr."):
            _search_working_directory()
        return name
    if base == "method":
        return class_path(bmlr.methods.get(name))
    return f"bmlr.data.{name}" if name in bmlr.data.class_names() else class_path(bmlr.data.get(name))


def _search_working_directory() -> None:
    """Let Python find modules in the working directory too, after all others, as ``python -m bmlr`` does."""
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)


def _class_options(hints: dict[str, Any]) -> list[str]:
    """Options that take the name of a class."""
    return [
        name for name in ("data", "method") if {MultimodalData, Method} & {hints.get(name), *get_args(hints.get(name))}
    ]


def _switches(function: Callable[..., Any], prefix: str = "--") -> Iterator[str]:
    """Options of type bool, those of nested options included."""
    for name, hint in get_type_hints(function).items():
        if hint is bool:
            yield f"{prefix}{name}"
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _switches(hint, f"{prefix}{name}.")
