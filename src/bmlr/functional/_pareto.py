"""Shortest vector between two gradients, of MMPareto (Wei and Hu, 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pareto_weight(g_m: Sequence[Tensor], g_u: Sequence[Tensor]) -> Tensor:
    r"""Weight :math:`w_m` of the first of two gradients (MMPareto).

    The second has :math:`1 - w_m`. One half where the gradients agree, :math:`g_m^\top g_u > 0`, or one is zero;
    else the closed form

    .. math:: \gamma = \mathrm{clip}\Bigl( \frac{(g_u - g_m)^\top g_u}{\lVert g_m - g_u \rVert^2}, 0, 1 \Bigr)

    of the shortest vector between both, which the official code returns too.

    Args:
        g_m: Gradient of the multimodal loss, tensor by tensor.
        g_u: Gradient of the unimodal loss in the same tensors.

    Returns:
        A scalar in [0, 1]. It stays on the device.

    Example:
        >>> import torch
        >>> pareto_weight([torch.tensor([1.0, 0.0])], [torch.tensor([-3.0, 0.0])])
        tensor(0.7500)
    """
    # As one vector: an encoder has a hundred tensors, and each would be reduced by itself.
    m, u = (torch.cat([g.flatten() for g in gradients]) for gradients in (g_m, g_u))
    gap = m - u
    product, numerator, distance = (m * u).sum(), -(gap * u).sum(), (gap * gap).sum()
    gamma = (numerator / distance).clamp(0, 1)
    # Between a gradient and zero the shortest vector is zero, which would leave out the other.
    is_agreement = (product > 0) | ~m.any() | ~u.any()
    return torch.where(is_agreement, 0.5, gamma)
