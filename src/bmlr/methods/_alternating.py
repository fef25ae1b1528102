"""Steps of one modality after another on the same batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_positive
from bmlr.batch import Batch
from bmlr.methods._base import Method
from bmlr.methods._support import check_batch, keep_gradients, output_alone, presence
from bmlr.methods._types import EpochContext, EpochPlan, Losses, Pass
from bmlr.model import MultimodalClassifier, Output

_PREFIX = "modality:"


class AlternatingMethod(Method):
    """A method with an optimiser step per modality on every batch.

    Modalities take their steps in the order of the model. A step runs one encoder. All other parameters but those of
    :meth:`learners` rest: they have no gradient, so that no momentum moves them. The model's fusion is not used.
    """

    leaves_gradients_unset: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._active: str | None = None  # learning modality of the current batch, until the optimiser step

    @abstractmethod
    def modality_losses(self, name: str, output: Output, targets: Tensor) -> Losses:
        """Losses of a modality's step, from its features alone."""

    @abstractmethod
    def learners(self, name: str) -> Iterable[nn.Module]:
        """Modules of the method that learn in a modality's step."""

    @property
    def plans_passes(self) -> bool:
        """Always: a pass per modality."""
        return True

    @property
    def trains_fusion(self) -> bool:
        """The heads of the method predict in its place."""
        return False

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Plan a pass per modality, aligned batch by batch."""
        return EpochPlan(tuple(Pass(_PREFIX + name) for name in context.model.modalities), order="aligned")

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Loss of the predictions, only for evaluation."""
        return Losses({"fused": output.task.loss(self.predict(output).logits, targets)})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Losses of the modality in the tag of a batch."""
        self._active = None
        if not batch.tag.startswith(_PREFIX):
            return super().batch_losses(model, batch)
        check_batch(model, batch)
        name = check_choice("tag", batch.tag.removeprefix(_PREFIX), model.modalities)
        output = output_alone(model, batch, name)
        losses = self.modality_losses(name, output, batch.targets)
        self._active = name
        return Losses({**losses.terms, **output.readout_losses(batch.targets)}, losses.logs)

    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Keep the gradients of the learning modality only."""
        if self._active is None:
            return
        keep_gradients(model, self, [model.encoders[self._active], model.fusion, *self.learners(self._active)])


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float] | None:
    """Weights of modalities as floats.

    Raises:
        ValueError: If one is not positive and finite.
    """
    return None if weights is None else {name: check_positive(f"weights.{name}", w) for name, w in weights.items()}


def check_named_weights(weights: Mapping[str, float] | None, modalities: Iterable[str]) -> None:
    """Raise a ValueError unless the weights are those of the modalities."""
    if weights is not None and sorted(weights) != sorted(modalities):
        raise ValueError(
            f"Parameter `weights` should have a number for each of {', '.join(modalities)}. Found {weights}."
        )


def fixed_shares(output: Output, weights: Mapping[str, float] | None, dtype: torch.dtype) -> Tensor:
    """Share of each modality in the prediction, shape (B, M).

    It is zero where the modality is absent. The shares of a sample add up to one. Weights of None are equal.
    """
    present = presence(output).to(dtype)
    if weights is not None:
        present = present * present.new_tensor([weights[name] for name in output.features])
    return present / present.sum(1, keepdim=True).clamp(min=torch.finfo(present.dtype).tiny)


def merge_logits(logits: Mapping[str, Tensor], shares: Tensor) -> Tensor:
    """Weighted sum of logits, shape (B, C), by shares, shape (B, M)."""
    stacked = torch.stack(list(logits.values()), 1)
    return (shares.to(stacked)[:, :, None] * stacked).sum(1)
