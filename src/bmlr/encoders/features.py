"""Features that encoders return: their width, absent samples, outputs that are no features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def masked_features(features: Tensor, present: Tensor | None) -> Tensor:
    """Features, zero where the mask of shape (B,) is False.

    Example:
        >>> import torch
        >>> from bmlr.encoders.features import masked_features
        >>> masked_features(torch.ones(2, 2), torch.tensor([True, False]))
        tensor([[1., 1.],
                [0., 0.]])
    """
    if present is None:
        return features
    return torch.where(present.view(-1, *[1] * (features.ndim - 1)), features, torch.zeros_like(features))


def describe_output(output: Any) -> str:
    """Contents of an encoder's output that is no tensor, and how to pick the features."""

    def shapes(values: Any) -> str:
        return str(tuple(values.shape)) if isinstance(values, Tensor) else type(values).__name__

    kind = type(output).__name__
    if isinstance(output, Mapping):  # a dictionary, or a ModelOutput of Hugging Face
        contents = ", ".join(f"{key} {shapes(value)}" for key, value in output.items())
        if "pooler_output" in output:
            pick = "output['pooler_output']"
        elif "last_hidden_state" in output:
            pick = "output['last_hidden_state'].mean(1)"
        else:
            pick = "one of its entries"
    elif isinstance(output, (tuple, list)):  # a recurrent layer: outputs of all steps, and the last state
        contents = ", ".join(map(shapes, output))
        pick = "output[0].mean(1)"
    else:
        return f"an object of type {kind}: wrap it in a module that returns a tensor"
    return f"{kind} of {contents}: wrap the encoder in a module that returns a tensor of it, such as {pick}"


def feature_dim(name: str, encoder: nn.Module, feature_dims: Mapping[str, int] | None) -> int:
    """Width of an encoder's features, as given or as the encoder says.

    Raises:
        ValueError: If neither tells.
    """
    if feature_dims is not None:
        if name not in feature_dims:
            raise ValueError(f"`feature_dims` should hold the width of every modality. '{name}' is missing.")
        return feature_dims[name]
    candidates = [encoder, *(reversed(list(encoder)) if isinstance(encoder, nn.Sequential) else ())]
    for module in candidates:
        for attribute in ("num_features", "out_features"):
            width = getattr(module, attribute, None)
            if isinstance(width, int):
                return width
    raise ValueError(
        f"`feature_dims` should give the feature width of '{name}': {type(encoder).__name__} has neither "
        "`num_features` nor `out_features`."
    )


def pooled(features: Tensor) -> Tensor:
    """Features of shape (B, d): those of a sequence, (B, …, d), averaged over its positions."""
    return features if features.ndim == 2 else features.flatten(1, -2).mean(1)
