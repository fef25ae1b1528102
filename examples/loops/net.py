"""A model and data without this library, which all loops here train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

EPOCHS = 4


class AudioTextNet(nn.Module):
    """Two encoders and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(16, 24), nn.ReLU())
        self.text_net = nn.Sequential(nn.Linear(12, 24), nn.ReLU())
        self.classifier = nn.Linear(48, 4)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Logits, shape (B, 4)."""
        logits: Tensor = self.classifier(torch.cat([self.audio_net(audio), self.text_net(text)], 1))
        return logits


def make_samples(count: int, seed: int) -> list[tuple[dict[str, Tensor], int]]:
    """Pairs (inputs by name, label); the text tells the class better than the audio."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    means = torch.randn(4, 28, generator=torch.Generator().manual_seed(9))
    x = torch.randn(count, 28, generator=generator) + means[labels] * torch.tensor([0.4] * 16 + [1.0] * 12)
    return [({"audio": row[:16], "text": row[16:]}, label) for row, label in zip(x, labels.tolist(), strict=True)]


def make_loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of the training and validation split."""
    train, val = make_samples(600, 0), make_samples(300, 1)
    return DataLoader(train, batch_size=30, shuffle=True), DataLoader(val, batch_size=300)  # type: ignore[arg-type]


@torch.no_grad()
def accuracy(net: nn.Module, loader: DataLoader[Any]) -> float:
    """Fraction of samples that a model classifies rightly."""
    hits = [net.eval()(**inputs).argmax(1) == labels for inputs, labels in loader]
    return float(torch.cat(hits).float().mean())
