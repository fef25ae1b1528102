"""Any method in a plain PyTorch loop, with encoders and loaders of your own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import bmlr
from bmlr.data import MultimodalData, SplitName, create

EPOCHS = 4


def main() -> None:
    """Train by three methods and print the accuracy of each on the validation split."""
    data = create("digits")
    data.prepare()
    train, val = make_loader(data, "train"), make_loader(data, "val")
    methods = [bmlr.BMLR(beta=0.5), bmlr.methods.LFM(), bmlr.methods.ReconBoost(t1=1, t2=1)]
    for method in methods:
        torch.manual_seed(0)
        encoders = {
            name: nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(modality.shape).numel(), 128), nn.ReLU())
            for name, modality in data.modalities.items()
        }
        model = bmlr.MultimodalClassifier(encoders, len(data.classes), feature_dims=dict.fromkeys(encoders, 128))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        balancer = bmlr.Balancer(model, method, optimizer, max_epochs=EPOCHS)
        for _ in range(EPOCHS):
            for batch in balancer.epoch(train, val):
                balancer.step(batch)
        print(f"{type(method).__name__}: multimodal {accuracy(balancer, val):.3f}")


def accuracy(balancer: bmlr.Balancer, loader: DataLoader[Any]) -> float:
    """Fraction of samples whose class the method predicts."""
    hits = [balancer.predict(inputs).logits.argmax(1) == targets for inputs, targets in loader]
    return float(torch.cat(hits).float().mean())


def make_loader(data: MultimodalData, name: SplitName) -> DataLoader[Any]:
    """A plain PyTorch loader of one split; any data set of yours that gives such pairs will do."""
    whole = data.split(name).batch(range(len(data.split(name))))
    pairs: Any = [({u: x[i] for u, x in whole.inputs.items()}, y) for i, y in enumerate(whole.targets)]
    return DataLoader(pairs, batch_size=64, shuffle=name == "train")


if __name__ == "__main__":
    main()
