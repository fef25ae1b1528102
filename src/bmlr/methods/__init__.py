"""Methods of balanced multimodal learning, one file per paper, all on one contract (:class:`Method`)."""

from __future__ import annotations

import re
from typing import Any

from bmlr._checks import nearest_name
from bmlr.methods._agm import AGM
from bmlr.methods._base import EpochContext, EpochPlan, Losses, Method, MethodInfo, Pass, Prediction
from bmlr.methods._bmlr import BMLR, OnlyReshape, OnlyTPO, UniDistill, UniReshaping, VanillaReshape
from bmlr.methods._cml import CML
from bmlr.methods._dgl import DGL
from bmlr.methods._joint import Joint, UniformBaseline
from bmlr.methods._lfm import LFM
from bmlr.methods._mbsd import MBSD
from bmlr.methods._mmpareto import MMPareto
from bmlr.methods._ogm_ge import OGMGE
from bmlr.methods._opm import OPM
from bmlr.methods._reconboost import ReconBoost
from bmlr.methods._relearning import DiagnosingRelearning
from bmlr.methods._remix import Remix

# A new method is one line here; names, documentation tables and the conformance tests follow from it.
_METHODS: tuple[type[Method], ...] = (
    Joint,
    UniformBaseline,
    BMLR,
    OnlyReshape,
    OnlyTPO,
    UniDistill,
    VanillaReshape,
    UniReshaping,
    OGMGE,
    OPM,
    AGM,
    MMPareto,
    DiagnosingRelearning,
    CML,
    MBSD,
    LFM,
    ReconBoost,
    Remix,
    DGL,
)


def available() -> list[str]:
    """Names of the methods, in the order of the documentation.

    Example:
        >>> import bmlr
        >>> bmlr.methods.available()[:3]
        ['Joint', 'UniformBaseline', 'BMLR']
    """
    return [method.__name__ for method in _METHODS]


def get(name: str) -> type[Method]:
    """The class of a method by its name or by the paper's title of it; case, spaces and hyphens do not matter.

    Args:
        name: A name among :func:`available`, such as ``BMLR``, ``OnlyTPO`` or ``only-tpo``.

    Raises:
        ValueError: If there is none; the message gives the nearest name.

    Example:
        >>> import bmlr
        >>> bmlr.methods.get("only-tpo").__name__
        'OnlyTPO'
    """
    wanted = _fold(name)
    for method in _METHODS:
        if wanted in {_fold(method.__name__), _fold(method.info.title)}:
            return method
    raise ValueError(
        f"Parameter `method` should be one of {', '.join(available())}. Found `method = {name!r}`."
        f"{nearest_name(name, available())}"
    )


def create(name: str, **parameters: Any) -> Method:
    """Make a method by its name.

    Args:
        name: A name as :func:`get` takes it.
        **parameters: Parameters of the method.

    Raises:
        ValueError: If the name is unknown or a parameter is out of its range.

    Example:
        >>> import bmlr
        >>> bmlr.methods.create("bmlr", alpha=0.5, beta=0.1)
        BMLR(alpha=0.5, beta=0.1)
    """
    return get(name)(**parameters)


def _fold(name: str) -> str:
    return re.sub(r"[\s_&-]", "", name).casefold()


__all__ = [
    "AGM",
    "BMLR",
    "CML",
    "DGL",
    "LFM",
    "MBSD",
    "OGMGE",
    "OPM",
    "DiagnosingRelearning",
    "EpochContext",
    "EpochPlan",
    "Joint",
    "Losses",
    "MMPareto",
    "Method",
    "MethodInfo",
    "OnlyReshape",
    "OnlyTPO",
    "Pass",
    "Prediction",
    "ReconBoost",
    "Remix",
    "UniDistill",
    "UniReshaping",
    "UniformBaseline",
    "VanillaReshape",
    "available",
    "create",
    "get",
]
