"""Encoders from the input of a modality to features (B, d)."""

from bmlr.encoders._mlp import MLP
from bmlr.encoders._resnet import ResNet, resnet18
from bmlr.encoders._text import TextEncoder
from bmlr.encoders._transformer import TransformerEncoder

__all__ = ["MLP", "ResNet", "TextEncoder", "TransformerEncoder", "resnet18"]
