"""The model of a configuration."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bmlr.config._options import ModelOptions
from bmlr.data import Modality, MultimodalData
from bmlr.encoders import MLP, TransformerEncoder, resnet18
from bmlr.model import MultimodalClassifier


def build_model(data: MultimodalData, options: ModelOptions) -> MultimodalClassifier:
    """Build the model of a configuration.

    Its weights come from torch's random generator.

    Raises:
        ValueError: If a modality is unknown or has no default encoder.
    """
    width = options.width or data.defaults.width
    modalities = options.select(data).modalities
    encoders = {name: _encoder(name, modality, width, options) for name, modality in modalities.items()}
    fusion_options = {"unimodal": options.unimodal, "conditioner": options.conditioner}
    return MultimodalClassifier(
        encoders,
        len(data.classes),
        options.fusion,
        fusion_options={name: value for name, value in fusion_options.items() if value is not None},
    )


def _encoder(name: str, modality: Modality, width: int, options: ModelOptions) -> nn.Module:
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
    raise ValueError(f"Modality '{name}' of kind '{modality.kind}' has no default encoder: give a model of your own.")
