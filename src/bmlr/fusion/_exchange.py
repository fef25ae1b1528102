"""Fusion by gates that all modalities share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer
from bmlr.fusion._base import Fusion, Readout


class MMTMFusion(Fusion):
    r"""Multimodal transfer module of Joze et al. (CVPR 2020), on pooled features.

    A joint squeeze s of all modalities excites each one, and the logits of one head per modality are averaged:

    .. math:: s = \mathrm{relu}(S\,[z^1; \dots; z^M]), \quad e^u = \sigma(E^u s), \quad
              \ell^u = W^u (e^u \odot z^u) + b^u, \quad \ell = \frac1M \sum_u \ell^u .

    S and E have biases; s has the width :math:`\lfloor 2 \sum_u d_u / r \rfloor`. The original sits at several
    convolutional layers of two networks, squeezes by pooling and goes on with the gated maps. Here the features are
    gated: that asks nothing of the encoders, but they exchange only once. The gate σ is that of Wu et al. (ICML 2022),
    whose method :class:`bmlr.methods.Greedy` acts on such gates; the original has 2σ and two modalities. A single
    modality has none to exchange with: it is read by its head alone.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        ratio: Reduction r ≥ 1 of the squeeze.
        unimodal: ``ablated`` (default) or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.MMTMFusion({"audio": 4, "video": 6}, num_outputs=3)
        >>> fusion({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, feature_dims: Mapping[str, int], num_outputs: int, *, ratio: int = 4, unimodal: Readout | None = None
    ) -> None:
        super().__init__(feature_dims, num_outputs, unimodal=unimodal)
        total = sum(self.feature_dims.values())
        width = max(1, 2 * total // check_integer("ratio", ratio, 1))
        if len(self.feature_dims) > 1:
            self.squeeze = nn.Linear(total, width)
            self.excitations = nn.ModuleDict({name: nn.Linear(width, d) for name, d in self.feature_dims.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(d, num_outputs) for name, d in self.feature_dims.items()})

    def gates(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gates eᵘ in (0, 1), shape (B, d) each; 1 for a single modality."""
        if len(self.feature_dims) == 1:
            return {name: torch.ones_like(features[name]) for name in self.feature_dims}
        squeezed = self.squeeze(torch.cat([features[name] for name in self.feature_dims], 1)).relu()
        return {name: self.excitations[name](squeezed).sigmoid() for name in self.feature_dims}

    def branch_logits(self, features: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits ℓᵘ of each head, shape (B, C)."""
        return {name: self.heads[name](gates[name] * features[name]) for name in self.feature_dims}

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        return torch.stack(list(self.branch_logits(features, self.gates(features)).values())).mean(0)
