"""``bmlr completion``: commands, options and names completed by the shell."""

from __future__ import annotations

import importlib
from argparse import Action, ArgumentParser
from typing import Any, Literal

import shtab

import bmlr.data
import bmlr.methods
from bmlr.commands import COMMANDS
from bmlr.commands._explanations import read_texts
from bmlr.commands._values import literals, placeholder
from bmlr.commands.options import Command, Option, class_options

#: Options whose values are names, with the package that has them.
_NAMES: dict[str, Any] = {
    "data": bmlr.data,
    "method": bmlr.methods,
    "methods": bmlr.methods,
    "baseline": bmlr.methods,
}


def execute(shell: Literal["bash", "zsh", "fish", "tcsh"]) -> None:
    """Print a script for completion by the Tab key.

    Example:
        bmlr completion bash

    Args:
        shell: The shell that reads the script.
    """
    print(shtab.complete(_make_parser(), shell))


def _make_parser() -> ArgumentParser:
    """The command line as shtab reads it; it parses nothing."""
    parser = ArgumentParser(prog="bmlr", add_help=False, allow_abbrev=False)
    for flag in ("--help", "--version"):
        parser.add_argument(flag, action="store_true")
    commands = parser.add_subparsers()
    commands.add_parser("help", help="List the commands, or the options of one.", add_help=False).add_argument(
        "command", nargs="?", choices=list(COMMANDS)
    )
    for name, description in COMMANDS.items():
        command = Command(name, importlib.import_module(f"bmlr.commands.{name}").execute)
        _add_options(commands.add_parser(name, help=description, add_help=False), command)
    return parser


def _add_options(parser: ArgumentParser, command: Command) -> None:
    parser.add_argument("--help", action="store_true", help="Show the options.")
    for option in command.positional or list(command.classes.values())[:1]:
        _complete(parser.add_argument(option.name.upper(), nargs="?" if option.item is None else "*"), option)
    options = {option.shown: option for option in command.all_options()}
    for name in command.classes:
        registry = _NAMES[name]
        for cls in map(registry.get, registry.available()):
            for option in class_options(cls, f"{name}."):
                options.setdefault(option.shown, option)
    for shown, option in options.items():
        text = read_texts(option.owner).get(option.name.rpartition(".")[2], "").partition(". ")[0]
        is_switch = option.hint is bool and option.default is False and "." not in option.name
        keywords: dict[str, Any] = {"nargs": "+"} if option.item is not None else {}
        keywords = {"action": "store_true"} if is_switch else keywords
        _complete(parser.add_argument(f"--{shown}", help=text.replace("%", "%%"), **keywords), option)


def _complete(action: Action, option: Option) -> None:
    """Say which words may follow."""
    hint = option.hint if option.item is None else option.item
    if option.name in _NAMES:
        action.choices = _NAMES[option.name].available()
    elif hint is bool and action.nargs != 0:
        action.choices = ["true", "false"]
    elif choices := literals(hint):
        action.choices = [str(choice) for choice in choices]
    elif placeholder(hint) == "PATH" or option.name == "files":
        vars(action)["complete"] = shtab.FILE  # read by shtab; folders too
