"""Errors of the system and of other processes as one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bmlr.runs import RunError, RunInterruptedError
from bmlr.training._guard import NonFiniteLossError
from bmlr.training._hardware import describe_out_of_memory, is_out_of_memory
from bmlr.training.loader import LoadingError


@contextlib.contextmanager
def translate_errors(directory: Path, batch_size: int) -> Iterator[None]:
    """Turn errors of the system and of other processes into a RunError.

    Args:
        directory: Directory of the run.
        batch_size: Samples per step and process.

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
    except (MemoryError, OSError, RuntimeError) as error:
        if (message := _describe(error, directory, batch_size)) is None:
            raise
        raise RunError(message) from error


def _describe(error: MemoryError | OSError | RuntimeError, directory: Path, batch_size: int) -> str | None:
    """The sentence for an error from outside the run; None for one of its own."""
    if is_out_of_memory(error):
        return describe_out_of_memory(error, batch_size)
    if isinstance(error, LoadingError):
        return f"The run in {directory} was stopped. {error} Continue it with --resume."
    if isinstance(error, OSError):
        return _describe_system(error, directory)
    if type(error).__module__.startswith(
        ("torch._inductor", "torch._dynamo")
    ):  # no compiler, or no place for its files
        return (
            f"The encoders cannot be compiled here: {first_line(error)} Leave out --trainer.compile, or name a folder "
            "that can be written by the variable TORCHINDUCTOR_CACHE_DIR."
        )
    if isinstance(error, RuntimeError) and _is_lost_process(error):
        return (
            f"The run in {directory} was stopped because one of its processes ended: {first_line(error)} Continue it "
            "with --resume."
        )
    return None


def _describe_system(error: OSError, directory: Path) -> str:
    if error.errno is None:  # raised by a library with a sentence of its own
        return str(error)
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"The run in {directory} was stopped by the system: {error.strerror}{where}. Continue it with --resume once "
        "that is fixed."
    )


def _is_lost_process(error: RuntimeError) -> bool:
    """Whether a lost rank caused the error."""
    if isinstance(error, (RunError, NonFiniteLossError)):
        return False
    if not torch.distributed.is_available():
        return False
    if isinstance(error, torch.distributed.DistError):  # also of processes that never met
        return True
    if not torch.distributed.is_initialized():
        return False
    # Not all backends raise a DistError when a peer is gone; some raise a plain RuntimeError of these words.
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
    return any(sign in str(error).casefold() for sign in signs)


def first_line(error: Exception) -> str:
    """The first line of an error's message, ended by a period."""
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
