"""Transformer for sequences."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer

_LONGEST_PERIOD = 10_000.0  # of the sinusoids, over 2π; the value of Vaswani et al.


class TransformerEncoder(nn.Module):
    r"""Pre-norm Transformer, averaged over time.

    After Vaswani et al. (2017) and Xiong et al. (2020). A linear projection to ``width``, positions, ``depth`` of
    PyTorch's own encoder layers (GELU, four times as wide inside), a layer normalisation and the mean over time.

    **Padding needs no mask.** A time step whose features are all zero is padding: no step attends to it and the mean
    leaves it out. Positions count from the first step that is not padding, so that padding before, after or on both
    sides gives the same features. A sequence of padding alone has features that are exactly zero, those of an absent
    modality.

    Works under ``torch.compile`` (one graph), automatic mixed precision and in any floating point type. Double
    backward needs PyTorch's plain attention, as every attention of it does:
    ``with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)``.

    Args:
        in_features: Width of a time step.
        width: Width of the layers and of the features; a multiple of ``heads``.
        depth: Number of layers.
        heads: Attention heads per layer.
        dropout: Probability of dropout after the positions and in the layers.
        max_length: Longest sequence that ``learned`` positions are made for; ``sinusoidal`` ones have no limit.
        positions: ``sinusoidal`` (fixed) or ``learned``.

    Attributes:
        num_features: Width of the features.

    Raises:
        ValueError: If an argument does not fit; the message names it.

    Example:
        >>> import torch, bmlr
        >>> encoder = bmlr.encoders.TransformerEncoder(5, width=16, depth=1, heads=2).eval()
        >>> x = torch.randn(2, 7, 5)
        >>> padded = torch.nn.functional.pad(x, (0, 0, 3, 4))  # three steps before, four after
        >>> encoder(x).shape, torch.allclose(encoder(x), encoder(padded), atol=1e-6)
        (torch.Size([2, 16]), True)
    """

    def __init__(
        self,
        in_features: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        max_length: int = 512,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
    ) -> None:
        super().__init__()
        self.in_features = check_integer("in_features", in_features, 1)
        self.num_features = check_integer("width", width, 1)
        check_integer("depth", depth, 1)
        check_integer("heads", heads, 1)
        if width % heads:
            raise ValueError(f"Parameter `width` should be a multiple of `heads = {heads}`. Found `width = {width}`.")
        if not 0 <= dropout < 1:
            raise ValueError(f"Parameter `dropout` should lie in [0, 1). Found `dropout = {dropout}`.")
        self.max_length = check_integer("max_length", max_length, 1)
        check_choice("positions", positions, ("sinusoidal", "learned"))
        self.projection = nn.Linear(in_features, width)
        self.positions = nn.Embedding(max_length, width) if positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        # One by one: nn.TransformerEncoder would start all layers from the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (B, width) from sequences of shape (B, T, in_features).

        Raises:
            ValueError: If the input has another shape, no time step, or more than learned positions are made for.
        """
        if x.ndim != 3 or x.shape[2] != self.in_features or not x.shape[1]:
            raise ValueError(
                f"Input should have shape (B, T, {self.in_features}) with T at least 1. Found {tuple(x.shape)}."
            )
        if self.positions is not None and x.shape[1] > self.max_length:
            raise ValueError(
                f"Input should have at most `max_length = {self.max_length}` time steps where positions are learned. "
                f"Found {x.shape[1]}."
            )
        real = (x != 0).any(2)
        steps = torch.arange(x.shape[1], device=x.device)
        positions = (steps - real.int().argmax(1, keepdim=True)).clamp(min=0)  # argmax gives the first of all ones
        hidden = self.projection(x)
        hidden = self.dropout(hidden + self._encoded(positions).to(hidden.dtype))
        # Attention over nothing is NaN: a sequence of padding alone attends to all of it and is zeroed below.
        padding = ~real & real.any(1, keepdim=True)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        hidden = self.norm(hidden)
        count = real.sum(1, keepdim=True).clamp(min=1)
        return torch.where(real[..., None], hidden, 0.0).sum(1) / count.to(hidden.dtype)

    def _encoded(self, positions: Tensor) -> Tensor:
        """Encodings (B, T, width) of positions (B, T).

        Sines in even dimensions, cosines in odd.
        """
        if self.positions is not None:
            encoded: Tensor = self.positions(positions)
            return encoded
        pairs = (self.num_features + 1) // 2
        dtype = torch.promote_types(self.projection.weight.dtype, torch.float32)
        exponents = torch.arange(pairs, device=positions.device, dtype=dtype) / pairs
        angles = positions[..., None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(2)[..., : self.num_features]
