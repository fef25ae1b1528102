"""Graphs of the CPU, which do to a step what CUDA does: work that is captured is not done, and a replay runs no Python.

A capture records every operation with its tensors. It then takes back what the operations did to tensors that were
there before, and to the random state. A replay runs the operations again, into the same tensors.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from host_reads import reads_or_copies

_Result = TypeVar("_Result")


class HostError(RuntimeError):
    """An operation that no graph of a device can hold."""


class RecordedGraphs:
    """A backend of graphs for the CPU; ``captures`` counts them."""

    def __init__(self) -> None:
        self.captures = 0

    def run(self, function: Callable[[], _Result]) -> _Result:
        return function()

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        self.captures += 1
        random_state, recorder = torch.get_rng_state(), _Recorder()
        # Checks of targets are made where they cost no wait: on the CPU, and not while a compiler traces.
        with patch("torch.compiler.is_compiling", lambda: True), recorder:
            result = function()
        torch.set_rng_state(random_state)
        recorder.take_back()
        return result, recorder.replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage, of tensors from before the capture
        self.made: set[int] = set()  # storages of the capture; the calls keep their tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        if reads_or_copies(func, args):
            raise HostError(f"{name} waits for the device or copies from the host")
        if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            raise HostError(f"{name} draws from a generator that the graph does not know")
        written = _written(func, args, kwargs)
        for tensor in written:
            if (place := tensor.untyped_storage().data_ptr()) not in self.made and place not in self.before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self.before[place] = whole, whole.clone()
        result = func(*args, **kwargs)
        outputs = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        fresh = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in known]
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in fresh}
        if fresh or written:  # a view needs no kernel
            # Of their present shapes: autograd squeezes some in place.
            self.calls.append((func, *tree_map_only(Tensor, Tensor.detach, (args, kwargs, fresh))))
        return result

    @torch.no_grad()
    def take_back(self) -> None:
        for whole, value in self.before.values():
            whole.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, fresh in self.calls:
            result = func(*args, **kwargs)
            if fresh:
                outputs = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
                for target, value in zip(fresh, outputs, strict=True):
                    target.copy_(value)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Arguments that an operation writes."""
    # Its schema does not say that it moves the running statistics.
    written = [x for x in args[3:5] if x is not None] if str(func).startswith("aten.native_batch_norm.") else []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += [tensor for tensor in tree_leaves(value) if isinstance(tensor, Tensor)]
    return written
