"""BMLR under a Lightning trainer and loaders of your own."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import bmlr
from bmlr.config import OptimizerOptions
from bmlr.data import MultimodalData, SplitName, create
from bmlr.training import BalancedModule


def main() -> None:
    """Train for a few epochs on pairs of (inputs by modality, target)."""
    lightning.seed_everything(0)
    data = create("digits")
    data.prepare()
    train_loader, val_loader = make_loader(data, "train"), make_loader(data, "val")
    encoders = {
        name: nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(modality.shape).numel(), 128), nn.ReLU())
        for name, modality in data.modalities.items()
    }
    model = bmlr.MultimodalClassifier(encoders, len(data.classes), feature_dims=dict.fromkeys(encoders, 128))
    module = BalancedModule(model, bmlr.BMLR(alpha=1.0, beta=0.5), OptimizerOptions(lr=1e-3))
    trainer = lightning.Trainer(max_epochs=10, accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, train_loader, val_loader)
    if (score := module.val_score) is not None:
        print(f"validation accuracy={score.fused:.3f}, {score.unimodal}")


def make_loader(data: MultimodalData, name: SplitName) -> DataLoader[Any]:
    """A plain PyTorch loader of one split; any data set of yours that gives such pairs will do."""
    whole = data.split(name).batch(range(len(data.split(name))))
    pairs: Any = [({u: x[i] for u, x in whole.inputs.items()}, y) for i, y in enumerate(whole.targets)]
    return DataLoader(pairs, batch_size=64, shuffle=name == "train")


if __name__ == "__main__":
    main()
