"""Multilayer perceptron for vectors."""

from __future__ import annotations

from torch import Tensor, nn

from bmlr._checks import check_integer


class MLP(nn.Module):
    """Two hidden layers with ReLU, the default encoder of vectors.

    Args:
        in_features: Width of the input.
        num_features: Width d of the hidden layers and of the features.

    Raises:
        ValueError: If a width is not a positive integer.

    Example:
        >>> import torch, bmlr
        >>> bmlr.encoders.MLP(4, 16)(torch.randn(2, 4)).shape
        torch.Size([2, 16])
    """

    def __init__(self, in_features: int, num_features: int = 64) -> None:
        super().__init__()
        check_integer("in_features", in_features, 1)
        self.num_features = check_integer("num_features", num_features, 1)
        self.layers = nn.Sequential(
            nn.Linear(in_features, num_features), nn.ReLU(), nn.Linear(num_features, num_features), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (B, d) from inputs of shape (B, in_features)."""
        features: Tensor = self.layers(x)
        return features
