"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def module_mode(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Put modules into training or evaluation mode; restore the mode of every submodule afterwards.

    Example:
        >>> import torch
        >>> layer = torch.nn.Dropout()
        >>> with module_mode(layer, training=False):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
