"""Directions of features, and the contrast between those of different labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr.functional._losses import masked_mean
from bmlr.functional._precision import widened

#: Norm below which a vector has no direction: the gradient of one would be its inverse.
_LEAST_NORM = 1e-6
#: Logarithm of what does not count: finite, since the gradient of a mean of nothing would be NaN.
_NOTHING = -1e30


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one, shape (N, d); those shorter than 1e-6 have no direction and stay as they are.

    Example:
        >>> import torch
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norms = torch.linalg.vector_norm(widened(rows), dim=-1, keepdim=True)
    return rows / torch.where(norms > _LEAST_NORM, norms, 1.0).to(rows.dtype)


def supervised_contrast(
    features: Tensor, is_same: Tensor, *, temperature: float = 0.5, mask: Tensor | None = None
) -> Tensor:
    r"""Supervised NT-Xent loss of features.

    The mean of :math:`-\log \frac{e^{s_{ap}}}{e^{s_{ap}} + \sum_n e^{s_{an}}}` over all ordered pairs a ≠ p of the same
    label, where n goes through the rows of another label and s is the cosine over the temperature.

    Args:
        features: Rows of any length, shape (N, d).
        is_same: Whether two rows have the same label, boolean, shape (N, N).
        temperature: Temperature > 0 of the cosines.
        mask: Boolean, shape (N,): rows that count. None counts all.

    Returns:
        A scalar, in float32 or wider; zero without a pair of the same label.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 1])
        >>> supervised_contrast(torch.eye(3), labels[:, None] == labels)
        tensor(0.6931)
    """
    rows = widened(features)
    if mask is not None:
        rows = torch.where(mask[:, None], rows, 0.0)
    rows = unit_rows(rows)
    similarity = rows @ rows.T / temperature
    counts = torch.ones_like(is_same) if mask is None else mask[:, None] & mask
    others = torch.where(counts & ~is_same, similarity, _NOTHING).logsumexp(1, keepdim=True)
    pairs = counts & is_same & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return masked_mean(F.softplus(others - similarity).flatten(), pairs.flatten())
