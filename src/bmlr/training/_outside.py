"""Errors from outside a run, told in a sentence."""

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
    """Say in a sentence what has stopped a run from outside."""
    try:
        yield
    except SIGTERMException as error:
        raise RunInterruptedError(
            f"The run in {directory} was stopped by SIGTERM. Continue it with --resume, from its last checkpoint."
        ) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # of the data; they say which file
        raise
    except OSError as error:
        if error.errno is None:
            raise RunError(str(error)) from error
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"The run in {directory} was stopped by the system: {error.strerror}{where}. "
            "Continue it with --resume once that is mended."
        ) from error
    except RuntimeError as error:
        if _is_from_outside(error):
            raise RunError(
                f"The run in {directory} was stopped because one of its processes ended: {first_line(error)} "
                "Continue it with --resume."
            ) from error
        raise


def _is_from_outside(error: RuntimeError) -> bool:
    """Whether an error tells of another process of the run that is gone."""
    if isinstance(error, (RunError, NonFiniteLossError)):
        return False
    if str(error).startswith("DataLoader worker"):
        return True
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error).casefold() for sign in signs)


def first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
