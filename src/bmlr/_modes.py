"""Modes and buffers of modules around a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
    # All that `train` reaches: the head of a wrapped model counts the encoders inside it among none of its modules.
    before = [(submodule, submodule.training) for module in modules for submodule in _tree(module)]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for submodule, mode in before:
            submodule.training = mode


def _tree(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        yield from _tree(child)


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Run forward passes on copies of the buffers.

    Batch normalisation normalises by the batch as ever, but its running statistics stay those of earlier passes.
    Afterwards the modules hold the same buffers as before, the very tensors.

    Example:
        >>> import torch
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> with preserved_buffers(layer):
        ...     shape = layer(torch.randn(4, 2)).shape
        >>> layer.num_batches_tracked
        tensor(0)
    """
    before = [
        (part, name, value)
        for module in modules
        for part in module.modules()
        for name, value in part.named_buffers(recurse=False)
    ]
    for part, name, value in before:
        setattr(part, name, value.clone())
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


@contextmanager
def running_batch_norm(module: nn.Module) -> Iterator[None]:
    """Normalise by running statistics, without adding to them; everything else stays in its mode.

    For a batch of one sample, by whose own statistics batch normalisation cannot train. Synchronised layers are left
    alone: their statistics are those of all processes.
    """
    layers = [
        part for part in module.modules() if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
    ]
    with module_mode(*layers, training=False):
        yield
