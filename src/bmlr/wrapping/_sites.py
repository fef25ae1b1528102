"""Modules and methods whose calls are watched or replaced, and what they return."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bmlr._checks import nearest_name

#: Entries of a dictionary or ``ModelOutput`` that hold features; the first that is there counts.
_FEATURES = ("pooler_output", "last_hidden_state", "features", "embeddings")


@dataclasses.dataclass
class Site:
    """A module, or a method of one, whose call is watched or replaced."""

    owner: nn.Module
    attribute: str
    label: str

    @classmethod
    def find(cls, net: nn.Module, target: str | nn.Module, argument: str) -> Site:
        if isinstance(target, nn.Module):
            names = [name for name, module in net.named_modules() if module is target]
            if not names:
                raise ValueError(
                    f"`{argument}` should be a module of the model. Found another, {type(target).__name__}."
                )
            return cls(target, "forward", names[0])
        modules = dict(net.named_modules())
        if target in modules and target:
            return cls(modules[target], "forward", target)
        parent, _, name = target.rpartition(".")
        owner = modules.get(parent)
        if owner is None or not name or not callable(getattr(owner, name, None)):
            raise ValueError(
                f"`{argument}` should name a module or a method of the model. Found {target!r}."
                f"{nearest_name(target, [module for module in modules if module])}"
            )
        return cls(owner, name, target)

    @contextlib.contextmanager
    def patched(self, function: Callable[..., Any]) -> Iterator[None]:
        """Call ``function`` in place of the module's ``forward`` or of the method."""
        before = vars(self.owner).get(self.attribute)
        object.__setattr__(self.owner, self.attribute, function)
        try:
            yield
        finally:
            if before is None:
                object.__delattr__(self.owner, self.attribute)
            else:
                object.__setattr__(self.owner, self.attribute, before)

    @contextlib.contextmanager
    def watched(self, record: Callable[[Any], None]) -> Iterator[None]:
        """Give ``record`` the output of every call."""
        original = getattr(self.owner, self.attribute)

        def call(*arguments: Any, **options: Any) -> Any:
            output = original(*arguments, **options)
            record(output)
            return output

        with self.patched(call):
            yield


def features_of(output: Any, name: str) -> Tensor:
    """Features in an encoder's output.

    Raises:
        ValueError: If there is no tensor that is clearly meant.
    """
    if isinstance(output, Mapping):
        for key in _FEATURES:
            if isinstance(value := output.get(key), Tensor):
                return value
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        raise ValueError(
            f"Encoder '{name}' returns {type(output).__name__} of {', '.join(map(str, output))}, and none of them is "
            f"{', '.join(_FEATURES)}: name in `encoders` a module whose output are the features."
        )
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Tensor):
        return output
    raise ValueError(f"Encoder '{name}' should return features. Found {type(output).__name__}.")


def logits_of(output: Any) -> Tensor:
    """Logits in the output of a model, shape (B, C); one number per sample, shape (B,), is a column."""
    value = output
    if isinstance(output, Mapping):
        value = output.get("logits")
    elif isinstance(output, (tuple, list)) and output:
        value = output[0]
    elif not isinstance(output, Tensor):
        value = getattr(output, "logits", None)
    if isinstance(value, Tensor) and value.ndim == 2:
        return value
    if isinstance(value, Tensor) and value.ndim == 1:
        return value[:, None]
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(output).__name__
    raise ValueError(
        "The model should return logits of shape (B, C): a tensor, the first entry of a tuple or an entry 'logits'. "
        f"Found {found}. Name in `head` the module whose output are the logits."
    )


def map_values(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor of an argument or an output; keep all else."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        entries = {key: map_values(function, entry) for key, entry in value.items()}
        return entries if type(value) is dict else type(value)(**entries)
    if isinstance(value, (tuple, list)):
        items = [map_values(function, entry) for entry in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    map_values(lambda tensor: tensors.append(tensor) or tensor, value)  # type: ignore[func-returns-value]
    return tensors
