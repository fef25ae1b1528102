"""Does a detector look at its radar? The blind-modality test with a score that is better when larger.

The score of a picture is the overlap (intersection over union) of the box found with the best of its true boxes.
Targets are a list of dictionaries, as detectors of torchvision take them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr.diagnosis import blind_modality_test

Targets = list[dict[str, Tensor]]
Batch = tuple[dict[str, Tensor], Targets]


class Detector(nn.Module):
    """Camera and radar to one box (left, top, right, bottom), in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
        self.radar = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(64 + 8, 4)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Boxes, shape (B, 4)."""
        features = torch.cat([self.camera(inputs["camera"]), self.radar(inputs["radar"])], 1)
        centre_and_size = self.head(features).sigmoid()
        half = centre_and_size[:, 2:] / 2
        return torch.cat([centre_and_size[:, :2] - half, centre_and_size[:, :2] + half], 1)


def scenes(count: int, seed: int) -> list[Batch]:
    """Scenes of one bright box, in batches of 64; the radar sees clutter only."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(0, count, 64):
        corner = torch.randint(0, 9, (64, 2), generator=generator)
        size = torch.randint(4, 8, (64, 2), generator=generator)
        boxes = torch.cat([corner, corner + size], 1)
        camera = 0.1 * torch.randn(64, 1, 16, 16, generator=generator)
        for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
            camera[i, 0, top:bottom, left:right] += 1
        radar = torch.randn(64, 1, 4, 4, generator=generator)
        targets = [{"boxes": box[None] / 16} for box in boxes]
        batches.append(({"camera": camera, "radar": radar}, targets))
    return batches


def overlap(boxes: Tensor, targets: Targets) -> Tensor:
    """Intersection over union of each box with the best true one, shape (B,)."""
    scores = []
    for box, target in zip(boxes, targets, strict=True):
        true = target["boxes"]
        sides = (torch.minimum(box[2:], true[:, 2:]) - torch.maximum(box[:2], true[:, :2])).clamp(min=0)
        shared = sides.prod(1)
        union = (box[2:] - box[:2]).prod() + (true[:, 2:] - true[:, :2]).prod(1) - shared
        scores.append((shared / union).max())
    return torch.stack(scores)


def learn(batches: list[Batch], epochs: int = 30) -> Detector:
    """A detector trained by a plain loop."""
    torch.manual_seed(0)
    detector = Detector()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.l1_loss(detector(inputs), torch.cat([target["boxes"] for target in targets])).backward()
            optimizer.step()
    return detector


def main() -> None:
    """Test a detector whose radar sees clutter."""
    detector = learn(scenes(2048, 0))
    test = blind_modality_test(
        lambda inputs, targets: overlap(detector(inputs), targets),
        scenes(256, 1),
        module=detector,
        larger_is_better=True,
        margin=0.02,
        answer=detector,
        score_name="overlap",
        subject="a detector",
    )
    print(test.to_markdown())


if __name__ == "__main__":
    main()
