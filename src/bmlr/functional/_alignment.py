"""Divergences of two predictions."""

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
    log_p, log_q, log_m = _with_mean(first, second)
    return (log_m.exp() * (log_m - 0.5 * (log_p + log_q))).sum(1)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence :math:`\tfrac12 [\mathrm{KL}(p \| m) + \mathrm{KL}(q \| m)]` with the mean m.

    Args:
        first: Logits of p, shape (B, C).
        second: Logits of q, shape (B, C).

    Returns:
        Values in [0, log 2], shape (B,), in nats.

    Example:
        >>> import torch
        >>> jensen_shannon(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]))
        tensor([0.6931])
    """
    log_p, log_q, log_m = _with_mean(first, second)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1)


def _with_mean(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of two predictions and of their mean, shape (B, C) each."""
    log_p, log_q = log_probabilities(first), log_probabilities(second)
    return log_p, log_q, torch.logaddexp(log_p, log_q) - math.log(2)
