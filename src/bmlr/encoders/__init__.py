"""Encoders: modules from the input of one modality to features of shape (B, d)."""

from bmlr.encoders._mlp import MLP
from bmlr.encoders._resnet import ResNet, resnet18
from bmlr.encoders._transformer import TransformerEncoder

__all__ = ["MLP", "ResNet", "TransformerEncoder", "resnet18"]
