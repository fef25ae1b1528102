"""Diagnosis of a plain PyTorch model, independent of this library.

Random inputs shaped like audio and video both determine the class. A linear map reads it from the spectrograms. In the
frames it has a random sign and takes longer to learn, so that joint training leaves video behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from bmlr.diagnosis import diagnose, write_diagnosis

CLASSES, EPOCHS = 6, 12
Pair = tuple[dict[str, Tensor], Tensor]


class AudioVisualNet(nn.Module):
    """A model with positional inputs and one tensor of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.1))
        self.video = nn.Sequential(nn.Flatten(), nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.classifier = nn.Linear(96, CLASSES)

    def forward(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """Logits, shape (B, C)."""
        logits: Tensor = self.classifier(torch.cat([self.audio(spectrogram), self.video(frames)], 1))
        return logits


def make_samples(count: int, generator: torch.Generator) -> list[Pair]:
    """Spectrograms (1, 8, 8) and clips (4, 1, 8, 8) of known structure, as pairs (inputs by modality, target)."""
    patterns = torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(7))
    targets = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 5, 8, 8, generator=generator)
    audio = 0.5 * patterns[0][targets] + noise[:, 0]
    sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1.0
    video = 0.2 * sign * patterns[1][targets][:, None] + noise[:, 1:]  # the random sign defeats a linear map
    return [({"audio": a[None], "video": v[:, None]}, y) for a, v, y in zip(audio, video, targets, strict=True)]


class Samples(Dataset[Pair]):
    """A data set of pairs."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


def main() -> None:
    """Train, diagnose, train each modality alone, and diagnose with these references."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train: DataLoader[Any] = DataLoader(Samples(make_samples(3000, generator)), batch_size=64, shuffle=True)
    val: DataLoader[Any] = DataLoader(Samples(make_samples(1000, generator)), batch_size=250)

    net = AudioVisualNet()

    def predict(inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = net(inputs["audio"], inputs["video"])
        return logits

    fit(net, predict, train)
    first = diagnose(predict, val, module=net, subject="an audio-visual net")
    print(first.paragraph, "\n")

    # Training on one modality: the same encoder under its own head, with the same budget.
    reference = {}
    for name in ("audio", "video"):
        encoder = getattr(AudioVisualNet(), name)
        alone = nn.Sequential(encoder, nn.Linear(48, CLASSES))
        fit(alone, only(name, alone), train)
        alone.eval()
        hits = torch.cat([(alone(inputs[name]).argmax(1) == targets).float() for inputs, targets in val])
        reference[name] = float(hits.mean())
    second = diagnose(predict, val, module=net, reference=reference, subject="an audio-visual net")
    print(second.to_markdown())
    for path in write_diagnosis(second, "runs/diagnosis-of-own-model"):
        print(path)


def only(name: str, module: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """Logits from one modality."""
    return lambda inputs: module(inputs[name])


def fit(
    module: nn.Module,
    predict: Callable[[dict[str, Tensor]], Tensor],
    loader: DataLoader[tuple[dict[str, Tensor], Tensor]],
) -> None:
    """A plain training loop."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module.train()
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(predict(inputs), targets).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
