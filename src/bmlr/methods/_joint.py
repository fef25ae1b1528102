"""Joint training with one loss, and with unimodal losses beside it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bmlr._checks import check_non_negative
from bmlr.methods._base import Method
from bmlr.methods._support import HeadedMethod
from bmlr.methods._types import ALL_TASKS, Losses, MethodInfo, Remedy
from bmlr.model import Output


class Joint(Method):
    r"""Joint training, the Baseline of the paper's Table I: :math:`L = \mathrm{CE}(y, p)`.

    For labels and numbers it is the loss of the task.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(bmlr.methods.Joint()(output, torch.tensor([0, 2])).terms)
        ['fused']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Joint training with one loss",
        venue="folklore",
        url="https://arxiv.org/abs/2605.28869",
        family="baseline",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    min_modalities: ClassVar[int] = 1

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss of the task."""
        return Losses({"fused": output.task.loss(output.logits, targets)})


class UniformBaseline(HeadedMethod):
    r"""Joint training with evenly weighted unimodal losses.

    .. math:: L = \mathrm{CE}(y, p) + w \sum_u \mathrm{CE}(y, h_u(z^u))

    The heads h_u are linear layers of the method's own, trained jointly with everything; they also give the unimodal
    predictions. The weight is 0.5 in the code of Remix (ICML 2025), by authors of BMLR, which does not state its own;
    MMPareto's code has 1. For labels and numbers the loss of the task takes the place of the cross-entropy.

    Args:
        weight: Weight w ≥ 0 of each unimodal loss.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.UniformBaseline()
        >>> method.setup(model)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(method(output, torch.tensor([0, 2])).terms)
        ['a', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Joint training with evenly weighted unimodal losses",
        venue="folklore",
        url="https://arxiv.org/abs/2605.28869",
        family="baseline",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    min_modalities: ClassVar[int] = 1
    remedy: ClassVar[Remedy | None] = Remedy("decision", "gives every modality a loss of its own", rank=2)

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal and the weighted unimodal losses."""
        return self.head_losses(output, targets, self.weight)
