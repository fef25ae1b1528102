"""Joint training with one loss, and joint training with unimodal losses beside it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from bmlr._checks import check_non_negative
from bmlr.functional import soft_cross_entropy
from bmlr.fusion._base import match_dtype
from bmlr.methods._base import Losses, Method, MethodInfo, Prediction, Remedy
from bmlr.model import MultimodalClassifier, Output


class Joint(Method):
    r"""Plain joint training, the Baseline of every table: :math:`L = \mathrm{CE}(y, p)` trains everything.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(bmlr.methods.Joint()(output, torch.tensor([0, 2])).terms)
        ['fused']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Baseline",
        paper="Joint training with one loss",
        venue="folklore",
        url="https://arxiv.org/abs/2605.28869",
        family="baseline",
    )
    min_modalities: ClassVar[int] = 1

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The fused cross-entropy."""
        return Losses({"fused": soft_cross_entropy(output.logits, targets)})


class UniformBaseline(Method):
    r"""Joint training with evenly weighted unimodal losses.

    .. math:: L = \mathrm{CE}(y, p) + w \sum_u \mathrm{CE}(y, h_u(z^u))

    The heads h_u are linear layers of the method's own, trained jointly with everything; they also give the unimodal
    predictions. The weight is 0.5 in the code of Remix (ICML 2025), by authors of BMLR, which does not state its own;
    MMPareto's code has 1.

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
        title="Uniform-Baseline",
        paper="Joint training with evenly weighted unimodal losses",
        venue="folklore",
        url="https://arxiv.org/abs/2605.28869",
        family="baseline",
    )
    remedy: ClassVar[Remedy | None] = Remedy("decision", "gives every modality a loss of its own", rank=2)

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)
        self.heads = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality."""
        self.heads = unimodal_heads(model)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The fused and the weighted unimodal cross-entropies."""
        terms = {"fused": soft_cross_entropy(output.logits, targets)}
        for name, logits in apply_heads(self, self.heads, output).items():
            terms[name] = self.weight * soft_cross_entropy(logits, targets, mask=output.mask(name))
        return Losses(terms)

    def predict(self, output: Output) -> Prediction:
        """Fused logits of the model, unimodal logits of the heads."""
        return Prediction(output.logits, apply_heads(self, self.heads, output))


def unimodal_heads(model: MultimodalClassifier) -> nn.ModuleDict:
    """One linear head per modality, on the model's device and in its type."""
    like = next(model.parameters())
    return nn.ModuleDict(
        {
            name: nn.Linear(width, model.num_classes, device=like.device, dtype=like.dtype)
            for name, width in model.fusion.feature_dims.items()
        }
    )


def apply_heads(method: Method, heads: nn.ModuleDict, output: Output) -> dict[str, Tensor]:
    """Logits of each head, shape (B, C).

    Raises:
        RuntimeError: If the heads were not made for this model's modalities.
    """
    if set(heads) != set(output.features):
        name = type(method).__name__
        raise RuntimeError(
            f"{name} has heads for {sorted(heads)} and got features of {sorted(output.features)}: call "
            "`method.setup(model)` once, before the optimiser is made."
        )
    return {name: heads[name](match_dtype(z, heads[name])) for name, z in output.features.items()}
