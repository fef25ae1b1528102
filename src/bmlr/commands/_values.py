"""Values of options: conversion of text by type, and types in words."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

#: Words of a switch, and of other options of type bool.
BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names", Path: "paths"}
_LETTERS = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH"}
_EXAMPLES = {int: ("1", "2"), float: ("0.1", "0.2"), str: ("a", "b"), Path: ("a", "b")}


def convert(value: Any, hint: Any, where: str) -> Any:
    """Value of a type, from text of the command line or an entry of a YAML file.

    Args:
        value: The text or entry.
        hint: The type.
        where: Subject of the message, such as ``Option --seed``.

    Raises:
        ValueError: If the value is not of that type; the message says the type in words.

    Example:
        >>> convert("3", int | None, "Option --seed")
        3
    """
    if hint is bool and isinstance(value, str):
        hint, value = Any, BOOLEANS.get(value.casefold(), value)
        if isinstance(value, str):
            raise ValueError(f"{where} should be true or false. Found {_shorten(value)}.")
    if isinstance(value, str) and value.casefold() in {"none", "null"} and type(None) in get_args(hint):
        return None
    if isinstance(value, str) and Path in _members(hint):
        value = _read_path(value, where)
    if isinstance(value, str) and (hint is str or value in literals(hint)):
        return value
    if isinstance(value, str) and hint is Path:
        return Path(value)
    if mapping_item(hint) is Any:  # of a mapping with an entry class_path the parser would make the object
        return _plain_mapping(value, hint, where)
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser, set_loader

    from bmlr.config import load_plain_yaml

    # The parser's own reader of YAML expands aliases, by which a small file can fill the memory.
    set_loader("plain", load_plain_yaml, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(exit_on_error=False, parser_mode="plain")
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, str):
            parsed = parser.parse_args([f"--value={value}"])
        else:
            parsed = parser.parse_object({"value": value})
        converted = parser.instantiate(parsed).value
    except (ArgumentError, yaml.YAMLError) as error:
        raise ValueError(f"{where} should be {describe_type(hint)}. Found {_shorten(value)}.") from error
    return Path(str(converted)) if isinstance(converted, os.PathLike) else converted


def _plain_mapping(value: Any, hint: Any, where: str) -> Any:
    """Plain data by name, or text where the type takes that too."""
    import yaml

    from bmlr.config import load_plain_yaml

    plain = value
    if isinstance(value, str):
        try:
            plain = load_plain_yaml(value)
        except yaml.YAMLError:
            plain = None
    takes_list = any(_origin(member) in {tuple, list} for member in _members(hint))
    if isinstance(plain, dict) or (takes_list and isinstance(plain, list)):
        return plain
    if value is None and type(None) in get_args(hint):
        return None
    if isinstance(value, str) and str in _members(hint):
        return value
    raise ValueError(f"{where} should be {describe_type(hint)}. Found {_shorten(value)}.")


def describe_type(hint: Any) -> str:
    """Words for a type.

    Example:
        >>> describe_type(dict[str, int] | None)
        'whole numbers by name, as {a: 1, b: 2}'
    """
    choices, members = literals(hint), _members(hint)
    if choices:
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 2 else " or ".join(map(str, choices))
    if Path in members:
        return _WORDS[Path]
    if len(members) > 1:
        words = [describe_type(member) for member in members]
        return " or ".join(dict.fromkeys(words))
    (member,) = members
    item = _item(member)
    first, second = _EXAMPLES.get(item, ("a", "b"))
    if _origin(member) in {dict, Mapping}:
        return f"{_PLURALS.get(item, 'values')} by name, as {{a: {first}, b: {second}}}"
    if _origin(member) in {list, tuple, Sequence}:
        return f"{_PLURALS.get(item, 'values')} in brackets, as [{first},{second}]"
    return _WORDS.get(member, "a value")


def placeholder(hint: Any) -> str:
    """Placeholder of a value in a help page.

    Example:
        >>> placeholder(int | Literal["auto"])
        'N|auto'
    """
    if choices := literals(hint):
        return "|".join(map(str, choices))
    members = _members(hint)
    if Path in members:
        return _LETTERS[Path]
    if len(members) > 1:
        return "|".join(dict.fromkeys(placeholder(member) for member in members))
    (member,) = members
    letter = _LETTERS.get(_item(member), "VALUE")
    if _origin(member) in {dict, Mapping}:
        return f"{{NAME: {letter}, ...}}"
    if _origin(member) in {list, tuple, Sequence}:
        return f"[{letter},...]"
    return _LETTERS.get(member, "VALUE")


def literals(hint: Any) -> tuple[Any, ...]:
    """Allowed values of a type that lists them, else none."""
    members = _members(hint)
    return get_args(members[0]) if len(members) == 1 and get_origin(members[0]) is Literal else ()


def list_item(hint: Any) -> Any:
    """Type of the items of a list, which are separate words of the command line; None for any other type."""
    members = _members(hint)
    return _item(members[0]) if len(members) == 1 and get_origin(members[0]) is list else None


def mapping_item(hint: Any) -> Any:
    """Type of the values of a mapping, whose entries are options too; None for a type that takes no mapping.

    Example:
        >>> mapping_item(dict[str, float] | float | None)
        <class 'float'>
    """
    return next((_item(member) for member in _members(hint) if _origin(member) is dict), None)


def _members(hint: Any) -> list[Any]:
    """Types of a union without None; a list of the type itself for any other."""
    if get_origin(hint) in {Union, types.UnionType}:
        return [member for member in get_args(hint) if member is not type(None)]
    return [hint]


def _origin(hint: Any) -> Any:
    origin = get_origin(hint)
    return {Mapping: dict}.get(origin, origin)


def _item(hint: Any) -> Any:
    """Type of the items of a list, or of the values of a mapping."""
    arguments = get_args(hint)
    if not arguments:
        return None
    return arguments[1] if _origin(hint) is dict else arguments[0]


def _read_path(text: str, where: str) -> str:
    if not text:  # pathlib takes it for the working directory
        raise ValueError(f"{where} should be a path. Found nothing.")
    return expand_home(text)


def expand_home(text: str) -> str:
    """Replace ~ by the home folder at the beginning and after an equals sign.

    No shell does it in --run=~/x and audio=~/x.wav, in quotes or in a YAML file.

    Example:
        >>> expand_home("a~b/~c")
        'a~b/~c'
    """
    head, separator, path = text.rpartition("=~")
    path = f"~{path}" if separator else text
    expanded = os.path.expanduser(path)  # noqa: PTH111  (pathlib's raises without a home folder)
    return f"{head}={expanded}" if separator else expanded


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split()) or "nothing"
    return text if len(text) <= 100 else f"{text[:100]}…"
