"""Frozen encoders and heads that were trained alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from bmlr.batch import Batch
from bmlr.encoders.features import pooled
from bmlr.fusion import Fusion, match_dtype
from bmlr.methods._starting import Trained, take_encoder, take_head
from bmlr.methods._support import unimodal_heads
from bmlr.model import MultimodalClassifier
from bmlr.parameters import shared_parameters


class Teachers(nn.Module):
    """Encoders and heads of trained runs of single modalities, frozen and in evaluation mode.

    Args:
        model: The model that learns from them; its encoders have the same layers.
    """

    def __init__(self, model: MultimodalClassifier) -> None:
        super().__init__()
        # Encoders that share parameters come from different runs, and need a copy of the model each.
        is_shared = any(True for _ in shared_parameters(dict(model.encoders.items())))
        self._owners = {name: name if is_shared else min(model.modalities) for name in model.modalities}
        self.networks = nn.ModuleDict({owner: _without_fusion(model) for owner in set(self._owners.values())})
        self.heads = unimodal_heads(model)
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def take(self, trained: Trained) -> None:
        """Copy encoders and heads of trained runs."""
        for name in self._owners:
            take_encoder(name, trained, self._network(name))
            take_head(name, trained, self.heads)

    @torch.no_grad()
    def features(self, name: str, batch: Batch) -> Tensor:
        """Features of a modality, shape (B, d); zero where it is absent."""
        return self._network(name).encode(name, batch.inputs[name], (batch.present or {}).get(name))

    @torch.no_grad()
    def logits(self, name: str, features: Tensor) -> Tensor:
        """Logits of a modality, shape (B, C), from its features."""
        logits: Tensor = self.heads[name](match_dtype(pooled(features), self.heads[name]))
        return logits

    def _network(self, name: str) -> MultimodalClassifier:
        network: MultimodalClassifier = self.networks[self._owners[name]]  # type: ignore[assignment]
        return network


class _NoFusion(Fusion):
    """Widths of features alone."""

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        raise RuntimeError("Teachers have no fusion.")


def _without_fusion(model: MultimodalClassifier) -> MultimodalClassifier:
    """A copy of a model, without its fusion where that is a module of its own."""
    network = copy.deepcopy(model)
    if "fusion" in dict(network.named_children()):  # the head of a wrapped model is the model
        network.fusion = _NoFusion(model.fusion.feature_dims, model.fusion.num_outputs)
    return network
