"""The command line: choice of a command, its arguments, errors as one sentence."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmlr._checks import nearest_name
from bmlr._extras import missing_extra
from bmlr._version import __version__
from bmlr.commands import COMMANDS

if TYPE_CHECKING:
    from bmlr.commands.options import Command

_FLAGS = {"help", "-h", "--help", "--version"}
#: Commands that, started again, go on where they were stopped.
_RESUMING = {"prepare", "compare", "tune", "reproduce"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 after one sentence on the error stream; 130 after one about Ctrl-C.
    """
    if arguments is None:
        gc.freeze()  # every collection would walk all of torch again, a fifth of the time of a short command
        arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with _plain_warnings():
            _execute(list(arguments) or ["help"])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:  # a run that was stopped has told where it goes on
        kept = "What is finished is kept: the same command goes on from there."
        stop = str(error) or f"Stopped by Ctrl-C. {kept if {*arguments[:1]} & _RESUMING else 'Nothing was kept.'}"
        _forget(error)
        print(f"bmlr: {' '.join(stop.split())}", file=sys.stderr)
        return 130
    except Exception as error:
        message = _describe(error)
        if message is None:  # a fault of the library keeps its traceback
            raise
        _forget(error)
        print(f"bmlr: error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the library's warnings as sentences, without their place in the code."""
    usual, own = warnings.formatwarning, str(Path(__file__).parent)

    def write(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and filename.startswith(own):
            return f"bmlr: warning: {' '.join(str(message).split())}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = write
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _forget(error: BaseException | None) -> None:
    """Free what the frames of an error hold.

    A loader of data that was stopped while it started its workers would print a traceback when it is freed.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _execute(arguments: list[str]) -> None:
    """Run a command, or print its help."""
    name, *words = arguments
    if name in {"help", "-h", "--help"}:
        if not words:
            print(_list_commands())
            return
        name, words = words[0], ["--help", *words[1:]]
    if name == "--version":
        print(f"bmlr {__version__}")
        return
    command = _load_command(name)
    from bmlr.commands import parsing

    topic = parsing.find_topic(command, words)
    if topic is None:
        arguments_of_command = parsing.read_arguments(command, words)
        try:
            command.function(**arguments_of_command)
        except ValueError as error:
            if type(error) is not ValueError:  # a subclass has more to say than its message
                raise
            raise ValueError(parsing.name_options(command, str(error))) from error
        return
    from bmlr.commands.help_pages import format_help

    print(format_help(command, topic))


def _list_commands() -> str:
    """Help page above those of the commands, which knows them without importing them."""
    return "\n".join((
        "usage: bmlr COMMAND [options]",
        "",
        "Balanced multimodal learning.",
        "",
        "example:",
        "  bmlr train digits --method BMLR --run runs/digits",
        "",
        "commands:",
        *(f"  {name:<11}{description}" for name, description in COMMANDS.items()),
        "",
        "bmlr help COMMAND lists the options of a command, bmlr --version the version.",
    ))  # fmt: skip


def _load_command(name: str) -> Command:
    """A command by its name.

    Raises:
        ValueError: If there is no such command.
    """
    if name not in COMMANDS:
        suggestion = nearest_name(name, [*COMMANDS, *_FLAGS])
        raise ValueError(f"There is no command {name}.{suggestion} bmlr help lists the commands.")
    from bmlr.commands.options import Command

    function: Callable[..., None] = importlib.import_module(f"bmlr.commands.{name}").execute
    return Command(name, function)


def _describe(error: Exception) -> str | None:
    """Message for an error that a user can have caused; None for any other."""
    message = str(error)
    if isinstance(error, RecursionError):
        message = "a file is nested too deeply to be what it should be."
    elif isinstance(error, ModuleNotFoundError):
        message = str(missing_extra(error))
        return None if (error.name or "").startswith("bmlr") else message
    elif isinstance(error, UnicodeEncodeError):  # a path in another encoding, which some libraries cannot take
        message = f"a name is not UTF-8: {error.object!r}. Rename the file or folder."
    elif isinstance(error, RuntimeError):
        from bmlr.runs import RunError
        from bmlr.training import NonFiniteLossError

        return message if isinstance(error, RunError | NonFiniteLossError) else None
    elif isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        message = f"{error.filename2 or error.filename}: {error.strerror}."
    elif not isinstance(error, ValueError | OSError):  # wrong input, or a disk that is full or fails
        return None
    return message
