"""Help pages of the commands, made from their signatures and docstrings."""

from __future__ import annotations

import contextlib
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import bmlr.data
import bmlr.methods
from bmlr._checks import nearest_name
from bmlr.commands._explanations import explain, parse_docstring, plain_text, read_texts
from bmlr.commands._user_classes import resolve_class
from bmlr.commands._values import placeholder
from bmlr.commands.options import REQUIRED, Command, Option, OptionGroup, class_options
from bmlr.commands.parsing import usage

_INDENT = 26
_SMALL = 3  # options of a group that is shown among those of the command
_PLURALS = {"data": "data sets", "method": "methods"}


def format_help(command: Command, topic: str = "") -> str:
    """Help page of a command, of a group of its options, of a data set or of a method.

    Raises:
        ValueError: If there is no such topic.
    """
    groups = {group.parameter: group for group in command.groups}
    if not topic:
        return "\n".join(_command_page(command, folded=True))
    if topic == "all":
        return "\n".join(_command_page(command, folded=False))
    if topic in groups:
        return "\n".join(_group_rows(groups[topic]))
    for name in command.classes:
        if topic.casefold() in {registered.casefold() for registered in _registry(name).available()}:
            return "\n".join(_class_page(name, topic))
    if command.classes and "." in topic:
        return "\n".join(_own_class_page(command, topic))
    topics = [*groups, "all"]
    names = [name for option in command.classes for name in _registry(option).available()]
    classes = " and ".join(f"the names of {_PLURALS[name]}" for name in command.classes)
    raise ValueError(
        f"There is no help on {topic}.{nearest_name(topic, [*topics, *names])} "
        f"Topics are {', '.join(topics)}{f', {classes}' if classes else ''}."
    )


def _registry(option: str) -> Any:
    return bmlr.data if option == "data" else bmlr.methods


def examples(command: Command) -> list[str]:
    """Example lines of a command's docstring."""
    parsed = parse_docstring(command.function.__doc__ or "")
    lines = [line for entry in parsed.examples for line in (entry.description or "").splitlines()]
    return [line.strip() for line in lines if line.strip()]


def _command_page(command: Command, *, folded: bool) -> list[str]:
    texts = read_texts(command.function)
    summary = (command.function.__doc__ or "").partition("\n")[0]
    lines = [f"usage: {usage(command)}", "", summary, "", "example:"]
    lines += [f"  {line}" for line in examples(command)]
    if command.positional:
        lines += ["", "arguments:"]
        for option in command.positional:
            label = option.name.upper() + ("..." if option.item is not None else "")
            lines += _row(label, texts[option.name])
    if command.classes or command.options or command.groups:
        lines += ["", "options:"]
    for name, option in command.classes.items():
        lines += _row(f"--{name} NAME", f"{texts[name]} {_class_text(name, option)}")
    small = [group for group in command.groups if len(group.options) <= _SMALL]
    lines += _option_rows([*command.options, *(option for group in small for option in group.options)])
    large = [group for group in command.groups if group not in small]
    if folded:
        lines += _folded_rows(command, large, texts)
    else:
        for group in large:
            lines += ["", *_group_rows(group)]
    return lines


def _class_text(name: str, option: Option) -> str:
    if name == "data":
        first = "may be the first word without --data. " if option.default is REQUIRED else ""
        return f"One of {', '.join(bmlr.data.available())}, or a class of yours as module.Class; {first}".rstrip(
            "; "
        ) + ("" if first else ".")
    first = ", which may be the first word without --method" if option.default is not REQUIRED else ""
    return f"bmlr methods lists them; or a class of yours as module.Class{first}."


def _folded_rows(command: Command, groups: Sequence[OptionGroup], texts: dict[str, str]) -> list[str]:
    """Groups of options, one row each."""
    rows = []
    for group in groups:
        fields = ", ".join(option.name.partition(".")[2] for option in group.options)
        rows += _row(f"--{group.parameter}.…", f"{texts[group.parameter].rstrip('.')}: {fields}.")
    if "data" in command.classes:
        rows += _row("--data.…", f"Parameters of the data set, as shown by bmlr help {command.name} digits.")
    if "method" in command.classes:
        rows += _row("--method.…", f"Parameters of the method, as shown by bmlr help {command.name} BMLR.")
    if groups:
        last = groups[-1].parameter
        help_of = f"bmlr help {command.name}"
        rows += ["", f"{help_of} {last} explains the options of a group, {help_of} all every option."]
    return ["", "groups of options:", *rows] if rows else []


def _group_rows(group: OptionGroup) -> list[str]:
    summary = (group.cls.__doc__ or "").partition("\n")[0]
    lines = [f"{group.parameter}: {summary}"]
    lines += _row(f"--{group.parameter} FILE", "YAML file with options of this group.")
    return lines + _option_rows(group.options)


def _class_page(name: str, topic: str) -> list[str]:
    cls = resolve_class(name, topic, f"Option --{name}")
    summary = (cls.__doc__ or "").partition("\n")[0]
    options = class_options(cls, f"{name}.")
    rows = _option_rows(options) if options else ["  It has no parameters."]
    return [f"{topic}: {summary}", "", "parameters:", *rows]


def _own_class_page(command: Command, path: str) -> list[str]:
    """Page of a class of the user's, a data set or a method."""
    *others, last = command.classes
    for name in others:
        with contextlib.suppress(ValueError):
            return _class_page(name, path)
    return _class_page(last, path)


def _option_rows(options: Iterable[Option]) -> list[str]:
    """Rows of options, each with its explanation and default."""
    lines = []
    for option in options:
        lines += _row(f"--{option.shown}{_placeholder(option)}", f"{explain(option)}{_default(option)}")
    return lines


def _placeholder(option: Option) -> str:
    if option.hint is bool and option.default is False and "." not in option.name:
        return ""
    if option.item is not None:
        letter = placeholder(option.item)
        return f" {letter} [{letter} ...]"
    return f" {placeholder(option.hint)}"


def _default(option: Option) -> str:
    value = option.default
    if value is REQUIRED:
        return " (required)"
    if value is None or (value is False and "." not in option.name):
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, (tuple, list)):
        value = f"[{','.join(map(str, value))}]"
    elif isinstance(value, dict):
        value = "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return f" (default {value})"


def _row(label: str, text: str, indent: int = _INDENT) -> list[str]:
    """Label and text in two columns."""
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    wrapped = textwrap.wrap(
        plain_text(text), max(30, width - indent), break_long_words=False, break_on_hyphens=False
    ) or [""]
    head = f"  {label}"
    if len(head) > indent - 2:
        return [head, *(" " * indent + line for line in wrapped)]
    return [f"{head:<{indent}}{wrapped[0]}", *(" " * indent + line for line in wrapped[1:])]
