"""A small convolutional encoder, for campaigns of thousands of runs."""

from __future__ import annotations

from torch import Tensor, nn

from bmlr.data import Modality


class SmallConvolution(nn.Module):
    """Three convolutions, for images and spectrograms.

    Args:
        modality: Kind and shape (C, H, W) of the input.
        width: Channels of the first convolution; the features have four times as many.
    """

    def __init__(self, modality: Modality, width: int = 8) -> None:
        super().__init__()
        channels, layers = modality.shape[0], list[nn.Module]()
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (B, 4 · width) from inputs of shape (B, C, H, W)."""
        features: Tensor = self.layers(x)
        return features
