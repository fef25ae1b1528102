"""Errors of the system and of other processes as one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bmlr.runs import RunError, RunInterruptedError
from bmlr.training._guard import NonFiniteLossError


@contextlib.contextmanager
def translate_errors(directory: Path) -> Iterator[None]:
    """Turn errors of the system and of other processes into a RunError.

    A signal becomes a RunInterruptedError. Errors that name a missing file of the data pass unchanged, and so do errors
    in the code of a run.
    """
    try:
        yield
    except SIGTERMException as error:
        raise RunInterruptedError(
            f"The run in {directory} was stopped by SIGTERM. Continue it with --resume, from its last checkpoint."
        ) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # of the data set; they name the file
        raise
    except OSError as error:
        if error.errno is None:  # raised by a library with a sentence of its own
            raise RunError(str(error)) from error
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"The run in {directory} was stopped by the system: {error.strerror}{where}. "
            "Continue it with --resume once that is fixed."
        ) from error
    except RuntimeError as error:
        if _is_lost_process(error):
            raise RunError(
                f"The run in {directory} was stopped because one of its processes ended: {first_line(error)} "
                "Continue it with --resume."
            ) from error
        raise


def _is_lost_process(error: RuntimeError) -> bool:
    """Whether a lost worker or rank caused the error."""
    if isinstance(error, (RunError, NonFiniteLossError)):
        return False
    if str(error).startswith("DataLoader worker"):
        return True
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    # Not all backends raise a DistError when a peer is gone; some raise a plain RuntimeError of these words.
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error).casefold() for sign in signs)


def first_line(error: Exception) -> str:
    """The first line of an error's message, ended by a period."""
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
