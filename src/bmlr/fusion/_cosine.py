"""Cosine fusion of MMCosine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_positive
from bmlr.functional import unit_rows
from bmlr.fusion._base import Fusion, Readout


class CosineFusion(Fusion):
    r"""Sum of the cosines of features and class weights: :math:`\ell_c = s \sum_u \cos(z^u, W^u_c)`.

    From MMCosine (Xu et al., ICASSP 2023, https://arxiv.org/abs/2303.05338). No modality can lead by longer features or
    weights: each adds at most s to a logit. Unimodal logits ``split`` the sum into its terms. There is no bias.

    Deviations: the official code (GeWu-Lab/MMCosine_ICASSP23, no licence) trains this sum, and then predicts by the
    linear layer :math:`W z + b` whose weights it took, with a bias that nothing trained; here the sum itself predicts.
    Its contrastive loss has the weight 0 by default and is left out. Features or weights shorter than 1e-6 have no
    direction and are left as they are: an absent modality adds nothing. More than two modalities are ours.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        unimodal: ``split`` (default), ``ablated`` or ``auxiliary``; see :class:`Fusion`.
        scale: Factor s > 0; 10 in the official code, 15 in BalanceBenchmark.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.CosineFusion({"audio": 4, "video": 6}, num_outputs=3, scale=5.0)
        >>> bool((fusion({"audio": torch.randn(9, 4), "video": torch.randn(9, 6)}).abs() <= 10).all())
        True
    """

    additive = True

    def __init__(
        self,
        feature_dims: Mapping[str, int],
        num_outputs: int,
        *,
        unimodal: Readout | None = None,
        scale: float = 10.0,
    ) -> None:
        super().__init__(feature_dims, num_outputs, unimodal=unimodal)
        self.scale = check_positive("scale", scale)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, num_outputs, bias=False) for name, width in self.feature_dims.items()}
        )

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        return torch.stack(list(self.split(features).values())).sum(0)

    def split(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms s cos(z^u, W^u_c), shape (B, C) each."""
        # Not get_parameter, which refuses the detached weights of a frozen fusion.
        weights = {name: next(self.heads[name].parameters()) for name in self.feature_dims}
        return {
            name: self.scale * F.linear(unit_rows(features[name]), unit_rows(weights[name]))
            for name in self.feature_dims
        }
