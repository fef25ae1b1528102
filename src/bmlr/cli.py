"""The command line: choose a command, parse its options, print errors as one sentence."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bmlr._checks import nearest_name
from bmlr._version import __version__
from bmlr.commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 2 after one sentence on the error stream.
    """
    if arguments is None:
        gc.freeze()  # every collection would walk all of torch again, a fifth of the time of a short command
        arguments = sys.argv[1:]
    name, *rest = arguments or ["--help"]
    if name == "help":
        name, *rest = [*rest[:1], "--help"]
    if name in {"-h", "--help", "--version"}:
        _make_parser().parse_args([name])
    try:
        _execute(name, rest)
    except (Exception, KeyboardInterrupt) as error:
        message = _describe(error)
        if message is None:  # a fault of the library keeps its traceback
            raise
        print(f"bmlr: error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    return 0


def _make_parser() -> argparse.ArgumentParser:
    """The parser above the commands, which knows them without importing them."""
    parser = argparse.ArgumentParser(
        prog="bmlr",
        description="Balanced multimodal learning.",
        epilog="bmlr COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, description in COMMANDS.items():
        commands.add_parser(name, help=description)
    return parser


def _execute(name: str, arguments: Sequence[str]) -> None:
    """Parse the options of a command and run it."""
    function = _load_command(name)
    from bmlr.commands import parsing

    parser = parsing.make_parser(name, COMMANDS[name], function)
    namespace = parser.parse_args(parsing.complete_arguments(arguments, function))
    options: dict[str, Any] = vars(parser.instantiate(namespace))
    options.pop("config", None)
    if module := options.pop("import", None):
        parsing.import_user_module(module)
    function(**{key: Path(str(value)) if isinstance(value, os.PathLike) else value for key, value in options.items()})


def _load_command(name: str) -> Callable[..., None]:
    """The function of a command.

    Raises:
        ValueError: If there is no such command, or a library of an extra is missing.
    """
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name}.{nearest_name(name, COMMANDS)} See bmlr --help.")
    try:
        importlib.import_module("bmlr.commands.parsing")
        function: Callable[..., None] = importlib.import_module(f"bmlr.commands.{name}").execute
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is not installed. Run: pip install "bmlr[train]"') from error
    return function


def _describe(error: BaseException) -> str | None:
    """The message for an error that a user can have caused; None for any other."""
    if isinstance(error, argparse.ArgumentError):
        return _one_sentence(str(error))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; a training run continues with --resume, everything else with the same command."
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be what it should be."
    if isinstance(error, ValueError | OSError):  # wrong input, or a disk that is full or fails
        return str(error)
    if isinstance(error, RuntimeError):
        from bmlr.runs import RunError
        from bmlr.training import NonFiniteLossError

        return str(error) if isinstance(error, RunError | NonFiniteLossError) else None
    return None


def _one_sentence(message: str) -> str:
    """The innermost of the parser's nested messages, on one line."""
    line = " ".join(piece.strip(" -") for piece in message.split("\n"))
    line = re.sub(r"\s+", " ", line).strip()
    line = re.sub(r"<class '([\w.]+)'>", r"\1", line)
    union = re.search(r'Parser key "([\w.]+)": .*?Subtypes: \[([^]]*)\].*Given value: (.*)', line)
    if union:
        key, types, value = union.groups()
        return f"Option --{key} should be of type {types.replace(', ', ' or ')}. Found {value}."
    return re.sub(r'^Parser key "(\w+)": Problem with given class_path \'[\w.]+\': ', r"Option --\1: ", line)
