"""A diagnosis leaves no trace: random streams and modes are as before afterwards."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the random streams of torch (with its devices), NumPy and Python back as they were.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> with preserved_random_state():
        ...     inside = torch.rand(3)
        >>> bool((torch.rand(3) == inside).all())
        True
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  (the stream user code draws from)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def modules_behind(function: Callable[..., Any]) -> list[nn.Module]:
    """The modules a function is, is a method of, or refers to by the names in its body.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> modules_behind(lambda inputs: net(inputs["audio"])) == [net]
        True
    """
    if isinstance(function, nn.Module):
        return [function]
    found: list[nn.Module] = []
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        found.append(owner)
    if inspect.isfunction(inspect.unwrap(function)):
        variables = inspect.getclosurevars(inspect.unwrap(function))
        named = {**variables.nonlocals, **variables.globals}
        found += [value for value in named.values() if isinstance(value, nn.Module)]
    return found
