"""Checks of arguments.

Messages name the argument, its value and the allowed values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_Text = TypeVar("_Text", bound=str)


def check_positive(name: str, value: float) -> float:
    """Return ``value``, or raise a ValueError unless it is finite and positive."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"Parameter `{name}` should be a positive finite number. Found `{name} = {value}`.")
    return float(value)


def check_non_negative(name: str, value: float) -> float:
    """Return ``value``, or raise a ValueError unless it is finite and non-negative."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Parameter `{name}` should be a non-negative finite number. Found `{name} = {value}`.")
    return float(value)


def check_unit_interval(name: str, value: float) -> float:
    """Return ``value``, or raise a ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:  # NaN fails this too
        raise ValueError(f"Parameter `{name}` should lie in [0, 1]. Found `{name} = {value}`.")
    return float(value)


def check_weights(name: str, weights: Sequence[float], count: int, noun: str) -> tuple[float, ...]:
    """Return ``weights``, or raise a ValueError unless there are ``count``, each finite and positive."""
    if len(weights) != count:
        raise ValueError(f"`{name}` should hold a weight for each of the {count} {noun}. Found {len(weights)}.")
    return tuple(check_positive(name, float(weight)) for weight in weights)


def check_integer(name: str, value: int, minimum: int) -> int:
    """Return ``value``, or raise a ValueError unless it is an integer ≥ ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"Parameter `{name}` should be an integer of at least {minimum}. Found `{name} = {value}`.")
    return value


def check_choice(name: str, value: _Text, allowed: Iterable[str]) -> _Text:
    """Return ``value``, or raise a ValueError with the nearest allowed name."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"Parameter `{name}` should be one of {', '.join(allowed)}. "
            f"Found `{name} = {value!r}`.{nearest_name(value, allowed)}"
        )
    return value


def nearest_name(value: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest allowed name, else ""."""
    by_folded = {name.casefold(): name for name in allowed}
    close = difflib.get_close_matches(str(value).casefold(), by_folded, n=1, cutoff=0.62)
    return f" Did you mean '{by_folded[close[0]]}'?" if close else ""


def check_modalities(argument: str, names: Iterable[str], modalities: Collection[str]) -> None:
    """Raise a ValueError unless all names are modalities."""
    for name in names:
        if name not in modalities:
            raise ValueError(
                f"`{argument}` should name modalities among {', '.join(modalities)}. "
                f"Found '{name}'.{nearest_name(name, modalities)}"
            )


def check_named(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` has an entry per modality, as a dictionary or a ModuleDict has."""
    if not hasattr(value, "keys"):
        raise ValueError(
            f"`{name}` should be a dictionary with an entry per modality, such as {{'audio': …, 'video': …}}. "
            f"Found {type(value).__name__}."
        )


def check_targets(targets: Tensor, batch_size: int, num_classes: int, *, soft: bool = False) -> None:
    """Raise a ValueError unless ``targets`` holds ``batch_size`` class indices below ``num_classes``.

    With ``soft`` they may be distributions over the classes. Values are looked at on the CPU only: on an accelerator
    that would wait for the device, and there the indexing operations themselves fail on an index out of range.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(f"`targets` should be a tensor of class indices. Found {type(targets).__name__}.")
    if soft and targets.is_floating_point() and targets.ndim == 2:
        _check_distributions(targets, batch_size, num_classes)
        return
    if targets.dtype not in {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}:
        raise ValueError(f"`targets` should be class indices of an integer type. Found dtype {targets.dtype}.")
    if tuple(targets.shape) != (batch_size,):
        raise ValueError(
            f"`targets` should have shape ({batch_size},), one class index per sample. "
            f"Found shape {tuple(targets.shape)}."
        )
    if batch_size and targets.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`targets` should lie in [0, {num_classes - 1}] for {num_classes} classes. "
                f"Found values from {low} to {high}."
            )


def _check_distributions(targets: Tensor, batch_size: int, num_classes: int) -> None:
    if tuple(targets.shape) != (batch_size, num_classes):
        raise ValueError(
            f"`targets` that are distributions should have shape ({batch_size}, {num_classes}). "
            f"Found shape {tuple(targets.shape)}."
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        sums = targets.sum(1)
        if not ((targets >= 0).all() and torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all()):
            raise ValueError(
                "`targets` that are distributions should be non-negative, and each row should sum to 1. "
                f"Found values from {targets.min():.4g} and sums from {sums.min():.4g} to {sums.max():.4g}."
            )


def check_unimodal_logits(unimodal_logits: Mapping[str, Tensor], targets: Tensor, *, at_least: int = 2) -> None:
    """Raise a ValueError unless the logits fit each other and ``targets``.

    They are tensors of one shape (B, C), of at least ``at_least`` modalities.
    """
    check_named("unimodal_logits", unimodal_logits)
    if len(unimodal_logits) < at_least:
        raise ValueError(
            f"`unimodal_logits` should hold at least {at_least} modalities. "
            f"Found {len(unimodal_logits)}: {sorted(unimodal_logits)}."
        )
    shapes = {name: tuple(logits.shape) for name, logits in unimodal_logits.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError(f"`unimodal_logits` should all have one shape (batch, classes). Found {shapes}.")
    for name, logits in unimodal_logits.items():
        if not logits.dtype.is_floating_point:
            raise ValueError(f"`unimodal_logits['{name}']` should be floating point. Found dtype {logits.dtype}.")
    batch_size, num_classes = next(iter(shapes.values()))
    if num_classes < 2:
        raise ValueError(f"`unimodal_logits` should hold at least 2 classes. Found shape {(batch_size, num_classes)}.")
    check_targets(targets, batch_size, num_classes, soft=True)


def check_present(present: Mapping[str, Tensor] | None, modalities: Iterable[str], batch_size: int) -> None:
    """Raise a ValueError unless ``present`` holds boolean (B,) masks of ``modalities``."""
    modalities = list(modalities)
    if present is not None:
        check_named("present", present)
    for name, mask in (present or {}).items():
        if name not in modalities:
            raise ValueError(
                f"`present` should name modalities among {modalities}. Found '{name}'.{nearest_name(name, modalities)}"
            )
        if not isinstance(mask, Tensor):
            raise ValueError(f"`present['{name}']` should be a boolean tensor. Found {type(mask).__name__}.")
        if mask.dtype != torch.bool or tuple(mask.shape) != (batch_size,):
            raise ValueError(
                f"`present['{name}']` should be a boolean mask of shape ({batch_size},). "
                f"Found dtype {mask.dtype}, shape {tuple(mask.shape)}."
            )
