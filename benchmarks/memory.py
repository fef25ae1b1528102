"""How much memory a training step of each method takes at most, relative to the plain joint step.

Run ``python benchmarks/memory.py``: the models, batches and steps of ``step.py``, one method after another. Counted are
model, optimiser, method, batch and all that is alive at once within the second step of each kind, in which the
optimiser has its state. On the CPU the bytes of all tensors are followed, from the operation that makes them to the
last reference: exact, and the same in every run, but without what a kernel takes within one operation. On a GPU it is
what PyTorch had allocated.
"""

from __future__ import annotations

import argparse
import gc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from step import BASELINE, Setting, Subject, add_setting, chosen_methods, make_setting, table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operations have made and somebody still holds.

    Attributes:
        live: Bytes now.
        peak: Most bytes since :meth:`reset`.

    Example:
        >>> with LiveBytes() as memory:
        ...     x = torch.zeros(100)
        ...     y = (x + 1).relu_().view(10, 10)  # one more, its views the same
        >>> memory.live, memory.peak
        (800, 800)
        >>> del x, y
        >>> memory.live
        0
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def reset(self) -> None:
        """Begin anew with the peak."""
        self.peak = self.live

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and add the storages it has made."""
        result = operation(*arguments, **(options or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def drop(_: object) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, drop)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_memory(name: str, setting: Setting) -> int:
    """Bytes alive at most within a step, of all kinds of steps of a method."""
    gc.collect()
    if setting.device.startswith("cuda"):
        before = torch.cuda.memory_allocated(setting.device)
        subject = Subject(name, setting, setting.make_batch())
        for tag in subject.batches:
            subject.step(tag)
        torch.cuda.reset_peak_memory_stats(setting.device)
        for tag in subject.batches:
            subject.step(tag)
        peak: int = torch.cuda.max_memory_allocated(setting.device) - before
        return peak
    with LiveBytes() as memory:
        subject = Subject(name, setting, setting.make_batch())
        for tag in subject.batches:
            subject.step(tag)
        memory.reset()
        for tag in subject.batches:
            subject.step(tag)
    return int(memory.peak)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_setting(parser)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    setting = make_setting(options)
    peaks = {name: peak_memory(name, setting) for name in chosen_methods(options)}
    print(f"Torch {torch.__version__}, {setting}\n")
    rows = ([name, f"{peak / 2**20:,.1f}", f"{peak / peaks[BASELINE]:.3f}"] for name, peak in peaks.items())
    print(table(["method", "peak, MiB", f"peak / {BASELINE}"], rows))


if __name__ == "__main__":
    main()
