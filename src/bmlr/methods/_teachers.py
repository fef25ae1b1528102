"""Frozen encoders and heads that were trained alone."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bmlr.batch import Batch
from bmlr.fusion import Fusion
from bmlr.methods._starting import StartingMethod, Trained, take_encoder, take_head
from bmlr.methods._support import check_batch, encode_batch, read_features, unimodal_heads
from bmlr.methods._types import Losses
from bmlr.model import MultimodalClassifier, Output
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
        return encode_batch(self._network(name), batch, name)

    @torch.no_grad()
    def logits(self, name: str, features: Tensor) -> Tensor:
        """Logits of a modality, shape (B, C), from its features."""
        return read_features(self.heads[name], features)

    def _network(self, name: str) -> MultimodalClassifier:
        network: MultimodalClassifier = self.networks[self._owners[name]]  # type: ignore[assignment]
        return network


class TaughtMethod(StartingMethod):
    """A method whose encoders learn from teachers, which are in its state and not in the weights of a run."""

    training_state: ClassVar[tuple[str, ...]] = ("teachers", "has_started")

    teachers: Teachers

    def setup(self, model: MultimodalClassifier) -> None:
        """Make room for the teachers."""
        super().setup(model)
        self.teachers = Teachers(model)

    def take_runs(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Copy the teachers."""
        self.teachers.take(trained)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss; teachers need the inputs."""
        if self.training and torch.is_grad_enabled():
            name = type(self).__name__
            raise RuntimeError(f"{name} shows the inputs to its teachers: call `method.compute_losses(model, batch)`.")
        return Losses({"fused": output.task.loss(output.logits, targets)})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """The multimodal loss, and what the teachers add."""
        check_batch(model, batch)
        self.check_started(model.modalities)
        output = model(batch.inputs, batch.present)
        terms = {"fused": output.task.loss(output.logits, batch.targets), **output.readout_losses(batch.targets)}
        return Losses({**terms, **self.taught_losses(output, batch)})

    @abstractmethod
    def taught_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Losses of what the teachers know, by name."""


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
