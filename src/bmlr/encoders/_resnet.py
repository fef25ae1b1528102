"""ResNet-18 with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer


class _BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; parameter names as in torchvision."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + shortcut
        return torch.relu_(x)


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    """Blocks of one width; the first changes width and resolution."""
    first = _BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(_BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


class ResNet(nn.Module):
    """Residual network of basic blocks with pooled features.

    After He et al. (2016). Takes images or spectrograms (B, C, H, W), or frames (B, T, C, H, W) which share the weights
    and are averaged over time. Parameters carry torchvision's names, so that its ResNet-18 weights load with
    :meth:`load_torchvision_weights`.

    Args:
        layers: Number of blocks in each of the four stages.
        in_channels: Channels of the input: 3 for frames, 1 for spectrograms.
        width: Channels of the first stage; the features have 8 times as many.
        stem: ``imagenet`` (7 × 7 convolution of stride 2 and max-pooling) or ``small`` (3 × 3, stride 1, no pooling)
            for inputs of a few dozen pixels.

    Attributes:
        num_features: Width d of the features.

    Raises:
        ValueError: If an argument does not fit; the message names it.

    Example:
        >>> import torch, bmlr
        >>> encoder = bmlr.encoders.ResNet([2, 2, 2, 2], in_channels=3, width=8, stem="small")
        >>> encoder(torch.randn(2, 5, 3, 16, 16)).shape  # five frames
        torch.Size([2, 64])
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "small"] = "imagenet",
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ValueError(f"Parameter `layers` should hold 4 numbers of blocks. Found `layers = {list(layers)}`.")
        self.in_channels = check_integer("in_channels", in_channels, 1)
        check_integer("width", width, 1)
        check_choice("stem", stem, ("imagenet", "small"))
        for stage, blocks in enumerate(layers):
            check_integer(f"layers[{stage}]", blocks, 1)
        self.num_features = 8 * width
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, layers[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, d) of images (B, C, H, W).

        Those of frames (B, T, C, H, W) are averaged over time.

        Raises:
            ValueError: If the input has another number of dimensions or channels.
        """
        if x.ndim not in {4, 5} or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"Input should have shape (B, {self.in_channels}, H, W) or (B, T, {self.in_channels}, H, W). "
                f"Found {tuple(x.shape)}."
            )
        frames = x.shape[1] if x.ndim == 5 else None
        if frames is not None:
            x = x.flatten(0, 1)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = x.mean((2, 3))
        return x if frames is None else x.unflatten(0, (-1, frames)).mean(1)

    def load_torchvision_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a torchvision ResNet state dict without its classifier.

        The rest must fit exactly. A one-channel stem takes the sum of the three colour filters: its response to a grey
        image is then the colour network's response to that image in all three channels.

        Raises:
            ValueError: If keys or shapes do not fit.
        """
        weights = {name: value for name, value in state_dict.items() if not name.startswith("fc.")}
        stem = weights.get("conv1.weight")
        if stem is not None and stem.shape[1] == 3 and self.in_channels == 1:
            weights["conv1.weight"] = stem.sum(1, keepdim=True)
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"`state_dict` does not fit this encoder: {error}") from error


def resnet18(*, in_channels: int = 3, width: int = 64, stem: Literal["imagenet", "small"] = "imagenet") -> ResNet:
    """ResNet-18, the encoder of the paper's audio-visual experiments.

    Args:
        in_channels: Channels of the input: 3 for frames, 1 for spectrograms.
        width: Channels of the first stage, 64 in the paper; the features have 8 times as many.
        stem: ``imagenet`` or, for inputs of a few dozen pixels, ``small``.

    Example:
        >>> import bmlr
        >>> bmlr.encoders.resnet18(in_channels=1).num_features
        512
    """
    return ResNet([2, 2, 2, 2], in_channels=in_channels, width=width, stem=stem)
