"""BMLR as a loss in a plain PyTorch loop, with encoders of your own."""

from __future__ import annotations

import torch
from torch import nn

import bmlr
from bmlr.data import create
from bmlr.training import evaluate


def main() -> None:
    """Train for a few epochs and print the balance."""
    torch.manual_seed(0)
    data = create("digits")
    data.prepare()
    train, val = data.split("train"), data.split("val")

    audio = nn.Sequential(nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    image = nn.Sequential(nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    model = bmlr.MultimodalClassifier({"audio": audio, "image": image}, num_classes=len(data.classes))
    model(train.batch([0]).inputs)  # lazy layers take their sizes from a first batch
    method = bmlr.BMLR(alpha=1.0, beta=0.1)
    method.setup(model)
    optimizer = torch.optim.Adam([*model.parameters(), *method.parameters()], lr=1e-3)

    for epoch in range(10):
        for indices in torch.randperm(len(train)).split(64):
            batch = train.batch(indices.tolist())
            losses = method(model(batch.inputs), batch.targets)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        score = evaluate(model, method, [val.batch(range(len(val)))])
        print(f"epoch {epoch + 1}: fused {score.accuracy:.3f}, {score.unimodal_accuracy}")


if __name__ == "__main__":
    main()
