"""Additive fusions: concatenation and summation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr.fusion._base import Fusion, Readout


class ConcatFusion(Fusion):
    r"""Concatenation and one linear layer: :math:`\ell = [W^1 | \dots | W^M][z^1; \dots; z^M] + b`.

    Unimodal logits ``split`` the layer into its terms, :math:`\ell^u = W^u z^u + b / M` (BMLR, Eq. 3), which add up
    to the multimodal logits; ``ablated`` gives :math:`W^u z^u + b`, the reading of DGL, CML and Remix.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        unimodal: ``split`` (default), ``ablated`` or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.ConcatFusion({"audio": 4, "video": 6}, num_outputs=3)
        >>> features = {"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}
        >>> torch.allclose(fusion(features), sum(fusion(features, unimodal=True).values()), atol=1e-6)
        True
    """

    additive = True

    def __init__(self, feature_dims: Mapping[str, int], num_outputs: int, *, unimodal: Readout | None = None) -> None:
        super().__init__(feature_dims, num_outputs, unimodal=unimodal)
        self.linear = nn.Linear(sum(self.feature_dims.values()), num_outputs)

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        return F.linear(
            torch.cat([features[name] for name in self.feature_dims], 1), self.linear.weight, self.linear.bias
        )

    def split(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms W^u z^u + b / M, shape (B, C) each."""
        weights = self.linear.weight.split(list(self.feature_dims.values()), dim=1)
        bias = self.linear.bias / len(self.feature_dims)
        return {
            name: F.linear(features[name], weight, bias)
            for name, weight in zip(self.feature_dims, weights, strict=True)
        }


class SumFusion(Fusion):
    r"""One linear layer per modality, summed: :math:`\ell = \sum_u (W^u z^u + b^u)`.

    Unimodal logits ``split`` it into its terms, each with its own whole bias.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        unimodal: ``split`` (default), ``ablated`` or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.SumFusion({"audio": 4, "video": 6}, num_outputs=3)
        >>> fusion({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}).shape
        torch.Size([2, 3])
    """

    additive = True

    def __init__(self, feature_dims: Mapping[str, int], num_outputs: int, *, unimodal: Readout | None = None) -> None:
        super().__init__(feature_dims, num_outputs, unimodal=unimodal)
        self.heads = nn.ModuleDict({name: nn.Linear(width, num_outputs) for name, width in self.feature_dims.items()})

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        return torch.stack(list(self.split(features).values())).sum(0)

    def split(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms W^u z^u + b^u, shape (B, C) each."""
        return {name: self.heads[name](features[name]) for name in self.feature_dims}
