"""The model of a configuration."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from bmlr._modes import module_mode
from bmlr.config._given import GivenModel, check_network
from bmlr.config._options import ModelOptions
from bmlr.config._parts import Entry, make_part
from bmlr.config._pretrained import make_pretrained
from bmlr.data import Modality, MultimodalData
from bmlr.encoders import MLP, TextEncoder, TransformerEncoder, resnet18
from bmlr.encoders.features import describe_output, feature_dim
from bmlr.encoders.pretrained import is_pretrained
from bmlr.fusion import Fusion
from bmlr.model import MultimodalClassifier


def build_model(
    data: MultimodalData, options: ModelOptions | GivenModel, *, weights: bool = True
) -> MultimodalClassifier:
    """Build the model of a configuration, or take the finished one.

    Its weights come from torch's random generator, those of pretrained encoders from their checkpoints.

    Args:
        data: The data set.
        options: Options of the model, or a finished model.
        weights: Load the weights of pretrained encoders; False where those of a run follow.

    Raises:
        ValueError: If a modality is unknown or has no default encoder, or a class of the user's does not fit.
    """
    if isinstance(options, GivenModel):
        return options.network or options.take(None, "The run").network  # type: ignore[return-value]
    selected = options.select(data)
    modalities = selected.modalities
    if isinstance(options.net, dict):
        network = make_part("model", options.net, MultimodalClassifier, data=selected)
        check_network(network, selected)
        return network
    own = options.encoders or {}
    encoders, dims = {}, {}
    for name, modality in modalities.items():
        if name in own:
            encoders[name] = _own_encoder(own[name], modality, weights=weights)
        else:
            encoders[name] = _default_encoder(name, modality, options.width or data.defaults.width, options)
        dims[name] = _feature_width(name, encoders[name], modality)
    extra = {"unimodal": options.unimodal, "conditioner": options.conditioner}
    extra = {name: value for name, value in extra.items() if value is not None}
    task = data.task
    if isinstance(options.fusion, str):
        return MultimodalClassifier(encoders, task, options.fusion, feature_dims=dims, fusion_options=extra)
    entry = {**options.fusion, "init_args": extra | options.fusion["init_args"]}
    fusion = make_part("fusion", entry, Fusion, dims, task.num_outputs)  # type: ignore[type-abstract]
    return MultimodalClassifier(encoders, task, fusion)


def _own_encoder(entry: Entry, modality: Modality, *, weights: bool) -> nn.Module:
    if is_pretrained(entry["class_path"]):
        return make_pretrained(entry, modality.kind, modality.shape, weights=weights)
    return make_part("encoder", entry, nn.Module, modality=modality)


def _feature_width(name: str, encoder: nn.Module, modality: Modality) -> int:
    """Width of an encoder's features: what it says, or else what it gives for inputs of one.

    Raises:
        ValueError: If neither tells.
    """
    try:
        return feature_dim(name, encoder, None)
    except ValueError:
        pass
    example = torch.ones(2, *modality.shape, dtype=torch.int64 if modality.kind == "text" else None)
    try:
        with torch.no_grad(), module_mode(encoder, training=False):
            features = encoder(example)
    except Exception as error:  # whatever a module of the user's raises
        raise ValueError(
            f"Encoder '{name}' should tell its width by an attribute `num_features`, or run on inputs of shape "
            f"{tuple(example.shape)}. It has none and fails: {' '.join(str(error).split()).rstrip('.')}."
        ) from error
    if not isinstance(features, torch.Tensor):
        raise ValueError(f"Encoder '{name}' should return features of shape (B, d). Found {describe_output(features)}.")
    if features.ndim != 2 or len(features) != 2:
        raise ValueError(
            f"Encoder '{name}' should return features of shape (B, d). Found {tuple(features.shape)} for 2 samples."
        )
    return features.shape[1]


def _default_encoder(name: str, modality: Modality, width: int, options: ModelOptions) -> nn.Module:
    if modality.kind in {"image", "spectrogram", "frames"}:
        channels, height, breadth = modality.shape[-3:]
        stem: Literal["imagenet", "small"] = options.stem or ("small" if max(height, breadth) < 96 else "imagenet")
        return resnet18(in_channels=channels, width=width, stem=stem)
    if modality.kind == "vector":
        return MLP(modality.shape[0], 4 * width)
    if modality.kind == "sequence":
        steps, features = modality.shape
        return TransformerEncoder(
            features,
            4 * width,
            options.depth,
            options.heads,
            options.dropout,
            max_length=max(steps, 1),
            positions=options.positions,
        )
    if modality.kind == "text":
        return TextEncoder(
            modality.num_tokens,
            4 * width,
            options.depth,
            options.heads,
            options.dropout,
            max_length=max(modality.shape[0], 1),
            positions=options.positions,
            padding=modality.padding,
        )
    raise ValueError(f"Modality '{name}' of kind '{modality.kind}' has no default encoder: name one of your own.")
