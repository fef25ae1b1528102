"""Losses shared by the methods."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr.functional._precision import widened


def soft_cross_entropy(logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy between label distributions and predictions (BMLR, Eq. 10).

    Args:
        logits: Unnormalised predictions, shape (B, C).
        labels: Label distributions of shape (B, C), or class indices of shape (B,).
        mask: Boolean, shape (B,): samples that count. None counts all; with none left the loss is zero.

    Returns:
        The mean over the samples that count, a scalar; computed in float32 or wider. A class without mass in the
        label adds nothing, also where its logit is −∞. Masked samples get no gradient, whatever their logits are.

    Raises:
        ValueError: If the shape of the labels does not fit.

    Example:
        >>> import torch
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.full((1, 4), 0.25))
        tensor(1.3863)
    """
    logits = widened(logits)
    if mask is not None:
        logits = torch.where(mask[:, None], logits, 0.0)
    if not labels.dtype.is_floating_point:
        return masked_mean(F.cross_entropy(logits, labels.long(), reduction="none"), mask)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` should be distributions of the shape of `logits`, {tuple(logits.shape)}, or class indices. "
            f"Found shape {tuple(labels.shape)}."
        )
    log_prediction = F.log_softmax(logits, dim=1).masked_fill(labels == 0, 0.0)
    return masked_mean(-(labels.to(logits.dtype) * log_prediction).sum(1), mask)


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``values`` (B,) over the samples of ``mask`` (B,).

    It is zero without any. Masked values are dropped before the sum, so that a NaN among them reaches neither value
    nor gradient.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
