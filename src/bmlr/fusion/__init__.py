"""Fusions: multimodal logits and unimodal logits from the features of named modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmlr._checks import nearest_name
from bmlr.fusion._additive import ConcatFusion, SumFusion
from bmlr.fusion._base import Fusion, match_dtype
from bmlr.fusion._conditional import BilinearGatedFusion, FiLMFusion, GatedFusion
from bmlr.fusion._cosine import CosineFusion
from bmlr.fusion._exchange import MMTMFusion

_FUSIONS: dict[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
    "bigated": BilinearGatedFusion,
    "mmcosine": CosineFusion,
    "mmtm": MMTMFusion,
}


def available() -> list[str]:
    """Names accepted by :func:`create`.

    Example:
        >>> import bmlr
        >>> bmlr.fusion.available()
        ['concat', 'sum', 'film', 'gated', 'bigated', 'mmcosine', 'mmtm']
    """
    return list(_FUSIONS)


def create(name: str, feature_dims: Mapping[str, int], num_outputs: int, **options: Any) -> Fusion:
    """Make a fusion by its name.

    Args:
        name: One of :func:`available`.
        feature_dims: Feature width d of each modality.
        num_outputs: Width C of the logits, such as the number of classes.
        **options: Further arguments of the fusion, such as ``unimodal`` or ``conditioner``.

    Raises:
        ValueError: If the name is unknown; the message gives the nearest one.

    Example:
        >>> import bmlr
        >>> type(bmlr.fusion.create("film", {"audio": 8, "video": 8}, 3)).__name__
        'FiLMFusion'
    """
    if name not in _FUSIONS:
        raise ValueError(
            f"Parameter `fusion` should be one of {', '.join(_FUSIONS)}. Found `fusion = {name!r}`."
            f"{nearest_name(name, _FUSIONS)}"
        )
    return _FUSIONS[name](feature_dims, num_outputs, **options)


__all__ = [
    "BilinearGatedFusion",
    "ConcatFusion",
    "CosineFusion",
    "FiLMFusion",
    "Fusion",
    "GatedFusion",
    "MMTMFusion",
    "SumFusion",
    "available",
    "create",
    "match_dtype",
]
