"""Modules behind a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


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
