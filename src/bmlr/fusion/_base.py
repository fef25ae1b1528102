"""Base class of all fusions: multimodal and unimodal logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Literal, overload

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr._modes import preserved_buffers

Readout = Literal["split", "ablated", "auxiliary"]


class Fusion(nn.Module, ABC):
    """Classifier head Θ: multimodal and unimodal logits from features of named modalities.

    A fusion of your own implements :meth:`fused` alone. Its unimodal logits are then ``ablated``: the fusion with
    every other modality's features replaced by zero. The alternative ``auxiliary`` reads each modality with a
    linear head of its own, trained on detached features, so that it watches the encoders without steering them.
    Passes over zeroed features use batch statistics, where there are any, and leave the running ones as they are.
    Fusions that are a sum over modalities also offer ``split``, their exact terms (BMLR, Eq. 3), as their default.

    Args:
        feature_dims: Feature width d of each modality, in the order in which they are to be shown.
        num_outputs: Width C of the logits, such as the number of classes.
        unimodal: How unimodal logits are read: ``split``, ``ablated`` or ``auxiliary``; None takes the default.

    Raises:
        ValueError: If an argument does not fit; the message names it.

    Example:
        >>> import torch, bmlr
        >>> class Late(bmlr.fusion.Fusion):
        ...     def __init__(self, feature_dims, num_outputs):
        ...         super().__init__(feature_dims, num_outputs)
        ...         self.heads = torch.nn.ModuleDict(
        ...             {u: torch.nn.Linear(d, num_outputs) for u, d in feature_dims.items()})
        ...     def fused(self, features):
        ...         return torch.stack([self.heads[u](z) for u, z in features.items()]).logsumexp(0)
        >>> fusion = Late({"audio": 4, "text": 2}, 3)
        >>> features = {"audio": torch.randn(5, 4), "text": torch.randn(5, 2)}
        >>> fusion(features).shape, fusion(features, unimodal=True)["text"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    #: Whether the multimodal logits are a sum of one term per modality, which makes ``split`` available.
    additive: bool = False
    #: Method set up with the model that leaves the multimodal logits untrained, and predicts otherwise.
    untrained_by: str = ""
    #: Name of the pair with the method that was set up with the model.
    pair: str = ""

    def __init__(self, feature_dims: Mapping[str, int], num_outputs: int, *, unimodal: Readout | None = None) -> None:
        super().__init__()
        if not feature_dims:
            raise ValueError("`feature_dims` should name at least 1 modality. Found none.")
        for name, width in feature_dims.items():
            check_integer(f"feature_dims['{name}']", width, 1)
        self.feature_dims = dict(feature_dims)
        self.num_outputs = check_integer("num_outputs", num_outputs, 1)
        choices = ("split", "ablated", "auxiliary") if self.additive else ("ablated", "auxiliary")
        self.unimodal_readout: str = check_choice("unimodal", unimodal or choices[0], choices)
        if self.unimodal_readout == "auxiliary":
            self.auxiliary = nn.ModuleDict(
                {name: nn.Linear(width, num_outputs) for name, width in self.feature_dims.items()}
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.feature_dims)

    @abstractmethod
    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C), from features of shape (B, d) per modality."""

    def split(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms of additive multimodal logits, one per modality, shape (B, C) each."""
        raise NotImplementedError(f"{type(self).__name__} is not a sum over modalities.")

    def ablated(self, features: Mapping[str, Tensor], keep: Collection[str]) -> Tensor:
        """Multimodal logits, shape (B, C), with all features zero but those of ``keep``.

        Raises:
            ValueError: If ``keep`` names an unknown modality.
        """
        if unknown := set(keep) - set(self.feature_dims):
            raise ValueError(f"`keep` should name modalities among {list(self.feature_dims)}. Found {sorted(unknown)}.")
        return self.fused({name: z if name in keep else torch.zeros_like(z) for name, z in features.items()})

    def unimodal(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unimodal logits, shape (B, C) per modality, by the readout chosen at construction."""
        if self.unimodal_readout == "split":
            return self.split(features)
        if self.unimodal_readout == "auxiliary":
            return {name: self.auxiliary[name](z) for name, z in features.items()}
        return {name: self.ablated(features, (name,)) for name in features}

    @overload
    def forward(self, features: Mapping[str, Tensor], *, unimodal: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, features: Mapping[str, Tensor], *, unimodal: Literal[True]) -> dict[str, Tensor]: ...
    @overload
    def forward(self, features: Mapping[str, Tensor], *, keep: Collection[str]) -> Tensor: ...

    def forward(
        self, features: Mapping[str, Tensor], *, unimodal: bool = False, keep: Collection[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Multimodal logits; with ``unimodal`` unimodal ones; with ``keep`` those of some modalities.

        Only multimodal logits change buffers, such as running statistics: those of zeroed features never occur later.
        Features arrive in the parameters' type outside autocast: encoders run under autocast may hand over half
        precision to a loss that is computed after it.
        """
        features = {name: match_dtype(z, self) for name, z in features.items()}
        if keep is None and not unimodal:
            return self.fused(features)
        with preserved_buffers(self):
            return self.unimodal(features) if keep is None else self.ablated(features, keep)


def match_dtype(features: Tensor, reader: nn.Module) -> Tensor:
    """Features in the type of the reader's parameters; unchanged under autocast.

    Example:
        >>> import torch
        >>> match_dtype(torch.zeros(2, 4, dtype=torch.bfloat16), torch.nn.Linear(4, 3)).dtype
        torch.float32
    """
    weight = next(reader.parameters(), None)
    if weight is None:
        return features
    device = weight.device.type
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)  # 2.9 cannot trace it
    if known and torch.is_autocast_enabled(device):
        return features
    return features.to(weight.dtype)
