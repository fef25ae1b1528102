"""Encoders and fusions of a user's own, for tests that name them by path."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Never

import torch
from torch import Tensor, nn

from bmlr import MultimodalClassifier, wrap
from bmlr.data import Modality, MultimodalData
from bmlr.fusion import Fusion


class Net(nn.Module):
    """Encoder that asks for the form of its input, and tells its width."""

    def __init__(self, modality: Modality, width: int = 4, layers: Sequence[int] = (8,)) -> None:
        super().__init__()
        self.num_features = width
        size = int(torch.tensor(modality.shape).prod())
        sizes = [size, *layers, width]
        stages = [part for n, m in itertools.pairwise(sizes) for part in (nn.Linear(n, m), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *stages)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


class Untold(nn.Module):
    """Encoder that does not tell its width."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


class Unfit(nn.Module):
    """Encoder that fails on any input."""

    def forward(self, x: Tensor) -> Never:
        raise RuntimeError("no weights are here")


class Pair(nn.Module):
    """Encoder that returns two tensors, as a recurrent layer does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Late(Fusion):
    """Fusion by the log of summed probabilities."""

    def __init__(
        self, feature_dims: Mapping[str, int], num_classes: int, temperature: float = 1.0, unimodal: Any = None
    ) -> None:
        super().__init__(feature_dims, num_classes, unimodal=unimodal)
        self.temperature = temperature
        self.heads = nn.ModuleDict({name: nn.Linear(width, num_classes) for name, width in feature_dims.items()})

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.heads[name](z) / self.temperature for name, z in features.items()]).logsumexp(0)


def make_net(modality: Modality, width: int = 4) -> nn.Module:
    """A function in place of a class."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(modality.shape).prod()), width))


def make_model(data: MultimodalData, width: int = 4) -> MultimodalClassifier:
    """A whole model, by the library's own parts."""
    encoders = {name: Net(modality, width) for name, modality in data.modalities.items()}
    return MultimodalClassifier(encoders, data.task, "sum")


class Written(nn.Module):
    """A model that is already written."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.ear, self.eye = nn.Linear(4, 6), nn.Linear(size, 6)
        self.classifier = nn.Linear(12, 3)

    def forward(self, audio: Tensor, image: Tensor) -> Tensor:
        features = torch.cat([self.ear(audio), torch.tanh(self.eye(image.flatten(1)))], 1)
        logits: Tensor = self.classifier(features)
        return logits


def make_wrapped() -> nn.Module:
    """A wrapped model."""
    example = {"audio": torch.randn(2, 4), "image": torch.randn(2, 1, 8, 8)}
    return wrap(Written(), {"audio": "ear", "image": "eye"}, example)
