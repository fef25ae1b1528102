"""Counts of the encoder passes of a training step."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from subjects import compute, kinds, make_loop
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import bmlr

#: Samples of a batch; a single row, such as AGM's zero input, is a hundredth of a pass.
SAMPLES = 100


def encoder_passes(name: str) -> dict[str, tuple[float, float]]:
    """Encoder forwards and backwards of a step of a method, by kind of step, in units of the joint step."""
    found: dict[str, tuple[float, float]] = {}
    for loop, batch in kinds(make_loop(name, samples=SAMPLES)):
        with counted_rows(_encoders(loop.model, loop.method)) as rows:
            compute(loop, batch)
            loop.method.adjust_gradients(loop.model)
        whole = SAMPLES * len(loop.model.modalities)
        found[batch.tag] = rows["forward"] / whole, rows["backward"] / whole
    return found


@contextmanager
def counted_rows(encoders: Iterable[nn.Module]) -> Iterator[Counter[str]]:
    """Rows that go forward and backward through encoders."""
    rows = Counter[str]()
    encoders = set(encoders)
    # What flows back to the first layer has gone through the encoder; to its features alone it has not.
    firsts = {next(encoder.children()) for encoder in encoders}

    def count(module: nn.Module, _: Any, values: Any) -> None:
        if module in encoders:
            rows["forward"] += len(values)
        elif module in firsts and values.requires_grad:
            values.register_hook(lambda gradient: rows.update(backward=len(gradient)))

    handle = register_module_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def _encoders(*holders: nn.Module) -> Iterator[nn.Module]:
    for holder in holders:
        for module in holder.modules():
            if isinstance(module, bmlr.MultimodalClassifier):
                yield from module.encoders.values()
