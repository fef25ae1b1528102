"""Training and evaluation modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def module_mode(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Switch modules to training or evaluation mode for a while.

    Afterwards every submodule has its own mode again.

    Example:
        >>> import torch
        >>> layer = torch.nn.Dropout()
        >>> with module_mode(layer, training=False):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    before = [(submodule, submodule.training) for module in modules for submodule in module.modules()]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for submodule, mode in before:
            submodule.training = mode
