"""Half precision widened before losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def widened(values: Tensor) -> Tensor:
    """Values in float32 or wider; losses in half precision would overflow.

    Example:
        >>> import torch
        >>> widened(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the classes, shape (B, C), in float32 or wider.

    Example:
        >>> import torch
        >>> log_probabilities(torch.zeros(1, 2)).exp()
        tensor([[0.5000, 0.5000]])
    """
    return F.log_softmax(widened(logits), dim=1)
