"""Shapley values over subsets of modalities."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence

from torch import Tensor


def shapley_values(values: Mapping[frozenset[str], Tensor], empty: Tensor | None = None) -> dict[str, Tensor]:
    r"""Shapley value of each modality, exact over all subsets.

    .. math:: \phi_u = \sum_{S \not\ni u} \frac{|S|!\,(M - |S| - 1)!}{M!} \bigl( v(S \cup u) - v(S) \bigr)

    (Shapley, 1953; for the logits of a model AGM of Li et al., ICCV 2023; for its accuracy SHAPE of Hu et al., IJCAI
    2022, and Wei et al., CVPR 2024). The values add up to :math:`v(\text{all}) - v(\emptyset)`.

    Args:
        values: v(S) for each of the 2^M − 1 subsets that are not empty, all of one shape.
        empty: :math:`v(\emptyset)`, of the same shape; None is zero.

    Returns:
        Value of each modality, of that shape, by sorted name.

    Raises:
        ValueError: If a subset is missing.

    Example:
        >>> import torch
        >>> v = {frozenset({"a"}): 0.75, frozenset({"v"}): 0.5, frozenset({"a", "v"}): 1.0}
        >>> shapley_values({s: torch.tensor(x) for s, x in v.items()}, torch.tensor(0.25))
        {'a': tensor(0.5000), 'v': tensor(0.2500)}
    """
    names = sorted(set[str]().union(*values))
    if missing := [set(subset) for subset in subsets_of(names) if subset not in values]:
        raise ValueError(f"`values` should hold every subset of {names}. Missing: {missing}.")
    result = {}
    for u in names:
        terms = []
        for subset in [*(s for s in values if u not in s), frozenset[str]()]:
            weight = 1 / (len(names) * math.comb(len(names) - 1, len(subset)))
            before = values[subset] if subset else empty
            after = values[subset | {u}]
            terms.append(weight * (after if before is None else after - before))
        result[u] = functools.reduce(operator.add, terms)
    return result


def subsets_of(modalities: Sequence[str]) -> list[frozenset[str]]:
    """Nonempty subsets of the modalities, smallest first.

    Example:
        >>> [sorted(subset) for subset in subsets_of(["audio", "video"])]
        [['audio'], ['video'], ['audio', 'video']]
    """
    return [
        frozenset(names) for size in range(1, len(modalities) + 1) for names in itertools.combinations(modalities, size)
    ]
