"""Training of one modality alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from torch import Tensor, nn

from bmlr._checks import nearest_name
from bmlr.batch import Batch
from bmlr.methods._base import Method
from bmlr.methods._support import check_batch, output_alone, read_features, unimodal_heads
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output


class Unimodal(Method):
    r"""One modality alone, by a linear head of its own: :math:`L = \mathrm{CE}(y, h_u(z^u))`.

    Only the encoder of the modality runs in training, and nothing but it and the head h_u is trained: the fusion and
    the other encoders keep their first weights. The prediction, multimodal and of the modality, is that of the head;
    the other modalities have none, and their scores are not defined. Samples that lack the modality are left out of the
    loss and are predicted by the head's bias. For labels and numbers the loss of the task takes the place of the
    cross-entropy.

    It is the reference of every multimodal method: a multimodal score below that of the best single modality is a loss
    (Wang et al., CVPR 2020). :class:`Ensemble`, :class:`Pretrained`, :class:`UMT` and :class:`G2D` start from such
    runs.

    Args:
        modality: Name of the modality.

    Raises:
        ValueError: If the model has no such modality.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.Unimodal("a")
        >>> method.setup(model)
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> method.compute_losses(model, batch).total.backward()
        >>> model.encoders["a"].weight.grad is None, model.encoders["v"].weight.grad is None
        (False, True)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="What Makes Training Multi-modal Classification Networks Hard?",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1905.12681",
        family="baseline",
        cost="1 forward, 1 backward of one encoder",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    min_modalities: ClassVar[int] = 1
    leaves_gradients_unset: ClassVar[bool] = True
    conformance: ClassVar[Conformance] = Conformance(modality_parameter="modality", untrained={"": "others"})

    def __init__(self, modality: str | None = None) -> None:
        super().__init__()
        self.modality = modality
        self.head: nn.Module = nn.Identity()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the head."""
        super().setup(model)
        self.head = unimodal_heads(model)[self._name()]

    def check_modalities(self, names: Collection[str]) -> None:
        """Check that the modality is among those of the model.

        Raises:
            ValueError: If it is not.
        """
        super().check_modalities(names)
        if self.modality not in names:
            found = "none" if self.modality is None else f"`modality = {self.modality!r}`"
            raise ValueError(
                f"Parameter `modality` should name the one to train, among {', '.join(names)}. Found {found}."
                f"{nearest_name(self.modality, names) if self.modality else ''}"
            )

    @property
    def trains_fusion(self) -> bool:
        """The head predicts in its place."""
        return False

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The loss of the head."""
        name = self._name()
        return Losses({name: output.task.loss(self._logits(output), targets, output.mask(name))})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """The loss of the head; no other encoder runs."""
        check_batch(model, batch)
        name = self._name()
        return self.losses(output_alone(model, batch, name), batch.targets)

    def predict(self, output: Output) -> Prediction:
        """Logits of the head, as the multimodal ones and as those of the modality."""
        logits = self._logits(output)
        return Prediction(logits, {self._name(): logits})

    def _name(self) -> str:
        if isinstance(self.head, nn.Identity) and not self._pair:
            raise RuntimeError("Unimodal has no head: call `method.setup(model)` once, before the optimiser is made.")
        return str(self.modality)

    def _logits(self, output: Output) -> Tensor:
        """Logits of the head, shape (B, C)."""
        name = self._name()
        return read_features(self.head, output.features[name])
