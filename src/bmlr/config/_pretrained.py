"""Pretrained encoders in a configuration, which keeps all that is needed to make them again but their weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bmlr.config._parts import Entry
from bmlr.encoders.pretrained import (
    EncoderInput,
    PretrainedEncoder,
    absolute_name,
    check_arguments,
    describe,
    is_pretrained,
)


def with_checkpoint(part: Entry, kind: str) -> Entry:
    """An entry with what is known of its checkpoint, if it is that of a pretrained encoder.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    path = part["class_path"]
    if not is_pretrained(path):
        return part
    check_arguments(path, part["init_args"])
    if "checkpoint" in part:
        return part
    return {**part, "class_path": absolute_name(path), "checkpoint": describe(path, kind)}


def wanted_inputs(part: Entry) -> EncoderInput | None:
    """Inputs that a pretrained encoder wants; None where the data need not follow."""
    if "checkpoint" not in part or part["init_args"].get("preprocessing") == "ignore":
        return None
    return EncoderInput.from_dict(part["checkpoint"]["input"])


def make_pretrained(part: Entry, kind: str, shape: Sequence[int], *, weights: bool) -> nn.Module:
    """The encoder of an entry.

    Raises:
        ValueError: If it does not take such inputs, or its weights cannot be loaded.
    """
    arguments = {name: value for name, value in part["init_args"].items() if name != "preprocessing"}
    check_arguments(part["class_path"], arguments)
    return PretrainedEncoder(part["class_path"], kind, shape, part.get("checkpoint"), **arguments, weights=weights)
