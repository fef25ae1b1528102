"""Transformer for texts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer
from bmlr.encoders._transformer import TransformerEncoder


class TextEncoder(nn.Module):
    """An embedding of tokens and a :class:`TransformerEncoder`.

    Args:
        num_tokens: Number of different indices.
        width: Width of embeddings, layers and features; a multiple of ``heads``.
        depth: Number of layers.
        heads: Attention heads per layer.
        dropout: Probability of dropout after the positions and in the layers.
        max_length: Longest text that ``learned`` positions are made for.
        positions: ``sinusoidal`` (fixed) or ``learned``.
        padding: Index that fills up shorter texts; no other token attends to it.

    Attributes:
        num_features: Width of the features.

    Raises:
        ValueError: If an argument does not fit; the message names it.

    Example:
        >>> import torch, bmlr
        >>> encoder = bmlr.encoders.TextEncoder(100, width=16, depth=1, heads=2).eval()
        >>> short, padded = torch.tensor([[5, 7, 9]]), torch.tensor([[5, 7, 9, 0, 0]])
        >>> encoder(short).shape, torch.allclose(encoder(short), encoder(padded), atol=1e-6)
        (torch.Size([1, 16]), True)
    """

    def __init__(
        self,
        num_tokens: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        max_length: int = 512,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.padding = check_integer("padding", padding, 0)
        self.embedding = nn.Embedding(check_integer("num_tokens", num_tokens, 1), width)
        self.transformer = TransformerEncoder(width, width, depth, heads, dropout, max_length, positions)
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (B, width) from indices of tokens, shape (B, T).

        Raises:
            ValueError: If the input has another shape or type.
        """
        if x.ndim != 2 or x.is_floating_point() or not x.shape[1]:
            raise ValueError(
                f"Input should be integers of shape (B, T), indices of tokens. Found {tuple(x.shape)}, {x.dtype}."
            )
        # Steps of zeros are padding to the Transformer, whatever training has made of the embedding of padding.
        return self.transformer(torch.where((x != self.padding)[..., None], self.embedding(x), 0.0))  # type: ignore[no-any-return]
