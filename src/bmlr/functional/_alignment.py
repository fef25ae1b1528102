"""Alignment of two predictions, of LFM (Yang et al., 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bmlr.functional._precision import log_probabilities


def alignment(first: Tensor, second: Tensor) -> Tensor:
    r"""Alignment :math:`\tfrac12 [\mathrm{KL}(m \| p) + \mathrm{KL}(m \| q)]`, :math:`m = \tfrac12 (p + q)` (LFM).

    It is not the Jensen-Shannon divergence, whose arguments are the other way round. The paper does not number it; the
    form is that of the official code.

    Args:
        first: Logits of p, shape (B, C).
        second: Logits of q, shape (B, C).

    Returns:
        Non-negative values, shape (B,), zero for equal predictions.

    Example:
        >>> import torch
        >>> alignment(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([0.])
    """
    log_p, log_q = log_probabilities(first), log_probabilities(second)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - 0.5 * (log_p + log_q))).sum(1)
