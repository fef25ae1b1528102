"""Conditional fusions: one modality, the conditioner, acts on the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice
from bmlr.fusion._base import Fusion, Readout


class _ConditionalFusion(Fusion):
    """One modality conditions each of the others; their logits are summed.

    With two modalities there is one term. A single modality has none to condition: it is read by one linear layer.
    """

    def __init__(
        self,
        feature_dims: Mapping[str, int],
        num_outputs: int,
        *,
        conditioner: str | None = None,
        unimodal: Readout | None = None,
    ) -> None:
        super().__init__(feature_dims, num_outputs, unimodal=unimodal)
        names = list(self.feature_dims)
        self.conditioner = check_choice("conditioner", conditioner or names[0], names)
        self.conditioned = [name for name in names if name != self.conditioner]
        if not self.conditioned:
            self.linear = nn.Linear(self.feature_dims[self.conditioner], num_outputs)
        dims = {name: self.feature_dims[name] for name in self.conditioned}
        self.make_layers(self.feature_dims[self.conditioner], dims, num_outputs)

    @abstractmethod
    def make_layers(self, width: int, dims: Mapping[str, int], num_outputs: int) -> None:
        """Make the layers of each term.

        Args:
            width: Feature width of the conditioner.
            dims: Feature width of each modality it conditions.
            num_outputs: Width C of the logits, such as the number of classes.
        """

    @abstractmethod
    def term(self, condition: Tensor, name: str, features: Tensor) -> Tensor:
        """Logits, shape (B, C), of modality ``name`` under the conditioner's features."""

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        condition = features[self.conditioner]
        if not self.conditioned:
            logits: Tensor = self.linear(condition)
            return logits
        return torch.stack([self.term(condition, name, features[name]) for name in self.conditioned]).sum(0)


class FiLMFusion(_ConditionalFusion):
    r"""Feature-wise linear modulation: :math:`\mathrm{fc}(\gamma(z^a) \odot z^v + \delta(z^a))`.

    From Perez et al. (AAAI 2018), in the form used by OGM-GE and BMLR's Table II: [γ, δ] is one linear layer of the
    conditioner a. With more than two modalities each of the others is modulated and read by a layer of its own and
    the logits are summed, an extension of ours.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        conditioner: The modality a that modulates; None takes the first of ``feature_dims`` (audio in this field).
        unimodal: ``ablated`` (default) or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.FiLMFusion({"audio": 4, "video": 6}, num_outputs=3, conditioner="video")
        >>> fusion({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}).shape
        torch.Size([2, 3])
    """

    def make_layers(self, width: int, dims: Mapping[str, int], num_outputs: int) -> None:
        """Modulation and heads."""
        self.modulation = nn.ModuleDict({name: nn.Linear(width, 2 * dim) for name, dim in dims.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(dim, num_outputs) for name, dim in dims.items()})

    def term(self, condition: Tensor, name: str, features: Tensor) -> Tensor:
        """fc(γ ⊙ z + δ), shape (B, C)."""
        gamma, delta = self.modulation[name](condition).chunk(2, dim=1)
        logits: Tensor = self.heads[name](gamma * features + delta)
        return logits


class GatedFusion(_ConditionalFusion):
    r"""Gated fusion of Kiela et al. (AAAI 2018, arXiv 1802.02892): :math:`\mathrm{fc}(\sigma(A z^a) \odot B z^v)`.

    BMLR's Table II names "Bi-Gated" without saying whether this or :class:`BilinearGatedFusion` is meant; both are
    offered. With more than two modalities the logits of the gated others are summed, an extension of ours.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        conditioner: The modality a that gates; None takes the first of ``feature_dims`` (audio in this field).
        unimodal: ``ablated`` (default) or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.GatedFusion({"audio": 4, "video": 6}, num_outputs=3)
        >>> fusion({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}).shape
        torch.Size([2, 3])
    """

    def make_layers(self, width: int, dims: Mapping[str, int], num_outputs: int) -> None:
        """Gates, projections and heads."""
        self.gates = nn.ModuleDict({name: nn.Linear(width, dim) for name, dim in dims.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(dim, dim) for name, dim in dims.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(dim, num_outputs) for name, dim in dims.items()})

    def term(self, condition: Tensor, name: str, features: Tensor) -> Tensor:
        """fc(σ(A z^a) ⊙ B z), shape (B, C)."""
        gate = self.gates[name](condition).sigmoid()
        logits: Tensor = self.heads[name](gate * self.projections[name](features))
        return logits


class BilinearGatedFusion(_ConditionalFusion):
    r"""Bilinear-gated fusion of Kiela et al. (2018).

    A C × d × d tensor contracts the gate and the gated features.

    .. math:: \ell_c = \sigma(A z^a)^\top (T_c z^v + u_c) + b_c

    The linear term u in the gate is ours. Without it the conditioner alone, with :math:`z^v` replaced by zero, would
    give constant logits, and a method that trains encoders by unimodal losses would never train its encoder.

    See :class:`GatedFusion` for why both are offered. The tensor holds C d² numbers: use it with few classes.
    With more than two modalities the logits of the gated others are summed, an extension of ours.

    Args:
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        conditioner: The modality a that gates; None takes the first of ``feature_dims`` (audio in this field).
        unimodal: ``ablated`` (default) or ``auxiliary``; see :class:`Fusion`.

    Example:
        >>> import torch, bmlr
        >>> fusion = bmlr.fusion.BilinearGatedFusion({"audio": 4, "video": 6}, num_outputs=3)
        >>> fusion({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}).shape
        torch.Size([2, 3])
    """

    def make_layers(self, width: int, dims: Mapping[str, int], num_outputs: int) -> None:
        """Gates, bilinear maps and heads."""
        self.gates = nn.ModuleDict({name: nn.Linear(width, dim) for name, dim in dims.items()})
        self.bilinear = nn.ModuleDict({u: nn.Bilinear(dim, dim, num_outputs, bias=False) for u, dim in dims.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(dim, num_outputs) for name, dim in dims.items()})

    def term(self, condition: Tensor, name: str, features: Tensor) -> Tensor:
        """σ(A z^a)ᵀ (T_c z + u_c) + b_c for each class c, shape (B, C)."""
        gate = self.gates[name](condition).sigmoid()
        tensor = next(self.bilinear[name].parameters())
        # Autocast on the CPU knows no bilinear map, so that the types have to be matched here.
        logits: Tensor = self.bilinear[name](gate.type_as(tensor), features.type_as(tensor)) + self.heads[name](gate)
        return logits
