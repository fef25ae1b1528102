"""Training from encoders that were trained alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.methods._starting import StartingMethod, Trained, take_parts
from bmlr.methods._support import check_batch, encode_batch
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo
from bmlr.model import MultimodalClassifier, Output


class Pretrained(StartingMethod):
    r"""Joint training from encoders that were trained alone: :math:`L = \mathrm{CE}(y, p)`.

    The encoders begin with the weights of the runs of :class:`Unimodal`, the fusion with its own. With ``freeze`` only
    the fusion is trained: the encoders run in evaluation mode and without gradient, so that their batch normalisation
    keeps its statistics too. Without, all is fine-tuned by the multimodal loss. For labels and numbers it is the loss
    of the task.

    Kontras et al. (2024) compare both; on their split of CREMA-D by actors the fine-tuned one is ahead of all methods
    compared but their own. The learning rate is that of the options, for the runs of single modalities too.

    Args:
        freeze: Whether the encoders stay as they come.

    Raises:
        ValueError: If encoders share parameters, which cannot come from two runs.

    Example:
        >>> import copy, torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> trained = {name: (copy.deepcopy(model), bmlr.methods.Unimodal(name)) for name in model.modalities}
        >>> for network, single in trained.values():
        ...     single.setup(network)  # and train it
        >>> method = bmlr.methods.Pretrained()
        >>> method.setup(model)
        >>> method.start_from(trained, model)
        >>> bool((model.encoders["a"].weight == trained["a"][0].encoders["a"].weight).all())
        True
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Balancing Multimodal Training Through Game-Theoretic Regularization (its baselines)",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2411.07335",
        family="baseline",
        cost="M runs of single modalities; then 1 forward, 1 backward",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    leaves_gradients_unset: ClassVar[bool] = True
    conformance: ClassVar[Conformance] = Conformance(
        short={"freeze": False},
        variants={"frozen": {"freeze": True}},
        untrained={"frozen": "all"},
        alters_features="frozen encoders run in evaluation mode",
    )

    def __init__(self, freeze: bool = False) -> None:
        super().__init__()
        self.freeze = freeze

    def take_runs(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Copy the encoders."""
        take_parts(trained, model)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss of the task."""
        if self.freeze and any(z.requires_grad for z in output.features.values()):
            raise RuntimeError(
                "Pretrained(freeze=True) runs the encoders itself: call `method.compute_losses(model, batch)`."
            )
        return Losses({"fused": output.task.loss(output.logits, targets)})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """The multimodal loss, of frozen encoders in evaluation mode."""
        if not self.freeze:
            return super().batch_losses(model, batch)
        check_batch(model, batch)
        # All of the model: a layer without parameters, such as dropout, belongs to no encoder of a wrapped one.
        with torch.no_grad(), module_mode(model, training=False):
            features = {name: encode_batch(model, batch, name) for name in batch.inputs}
        losses: Losses = self(Output(features, model.fusion, model.task, batch.present), batch.targets)
        return losses
