"""Methods of balanced multimodal learning, one file per paper, with one interface."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from bmlr._checks import nearest_name
from bmlr.methods._agm import AGM
from bmlr.methods._amco import AMCo
from bmlr.methods._amss import AMSS
from bmlr.methods._aug import AUG
from bmlr.methods._balance_benchmark import (
    CMLBalanceBenchmark,
    LFMBalanceBenchmark,
    MBSDBalanceBenchmark,
    ReconBoostBalanceBenchmark,
)
from bmlr.methods._base import Method
from bmlr.methods._bmlr import BMLR, OnlyReshape, OnlyTPO, UniDistill, UniReshaping, VanillaReshape
from bmlr.methods._cggm import CGGM
from bmlr.methods._cml import CML
from bmlr.methods._dgl import DGL
from bmlr.methods._ensemble import Ensemble
from bmlr.methods._g2d import G2D
from bmlr.methods._gblend import GBlend
from bmlr.methods._greedy import Greedy
from bmlr.methods._inforeg import InfoReg
from bmlr.methods._joint import Joint, UniformBaseline
from bmlr.methods._lfm import LFM
from bmlr.methods._mbsd import MBSD
from bmlr.methods._mcr import MCR
from bmlr.methods._midas import MIDAS
from bmlr.methods._mla import MLA
from bmlr.methods._mlb import MLB
from bmlr.methods._mmpareto import MMPareto
from bmlr.methods._mslr import MSLR
from bmlr.methods._ogm_ge import OGMGE
from bmlr.methods._opm import OPM
from bmlr.methods._pdf import PDF
from bmlr.methods._pmr import PMR
from bmlr.methods._pretrained import Pretrained
from bmlr.methods._qmf import QMF
from bmlr.methods._reconboost import ReconBoost
from bmlr.methods._relearning import DiagnosingRelearning
from bmlr.methods._remix import Remix
from bmlr.methods._smv import ModalitySMV, SampleSMV
from bmlr.methods._starting import StartingMethod
from bmlr.methods._tcmax import TCMax
from bmlr.methods._types import (
    Conformance,
    EpochContext,
    EpochPlan,
    Family,
    Losses,
    MethodInfo,
    Pass,
    Prediction,
    Remedy,
)
from bmlr.methods._umt import UMT
from bmlr.methods._unimodal import Unimodal


def available() -> list[str]:
    """Names of the methods: joint training first, then by family.

    Example:
        >>> import bmlr
        >>> bmlr.methods.available()[:3]
        ['Joint', 'Ensemble', 'Pretrained']
    """
    return list(_METHODS)


def get(name: str) -> type[Method]:
    """Class of a method by its name.

    Case, spaces and hyphens do not matter: ``OGM-GE`` is ``OGMGE``.

    Args:
        name: A name among :func:`available`, such as ``BMLR``, ``OnlyTPO`` or ``only-tpo``.

    Raises:
        ValueError: If the name is unknown; the message gives the nearest name.

    Example:
        >>> import bmlr
        >>> bmlr.methods.get("only-tpo").__name__
        'OnlyTPO'
    """
    wanted = _fold(name)
    for method in _METHODS.values():
        if wanted == _fold(method.__name__):
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
    "AMSS",
    "AUG",
    "BMLR",
    "CGGM",
    "CML",
    "DGL",
    "G2D",
    "LFM",
    "MBSD",
    "MCR",
    "MIDAS",
    "MLA",
    "MLB",
    "MSLR",
    "OGMGE",
    "OPM",
    "PDF",
    "PMR",
    "QMF",
    "UMT",
    "AMCo",
    "CMLBalanceBenchmark",
    "Conformance",
    "DiagnosingRelearning",
    "Ensemble",
    "EpochContext",
    "EpochPlan",
    "GBlend",
    "Greedy",
    "InfoReg",
    "Joint",
    "LFMBalanceBenchmark",
    "Losses",
    "MBSDBalanceBenchmark",
    "MMPareto",
    "Method",
    "MethodInfo",
    "ModalitySMV",
    "OnlyReshape",
    "OnlyTPO",
    "Pass",
    "Prediction",
    "Pretrained",
    "ReconBoost",
    "ReconBoostBalanceBenchmark",
    "Remedy",
    "Remix",
    "SampleSMV",
    "StartingMethod",
    "TCMax",
    "UniDistill",
    "UniReshaping",
    "UniformBaseline",
    "Unimodal",
    "VanillaReshape",
    "available",
    "create",
    "get",
]


def _listed() -> dict[str, type[Method]]:
    """Concrete methods of ``__all__``: Joint, then in the order of :data:`Family` and of names."""
    classes = [value for name in __all__ if inspect.isclass(value := globals()[name]) and issubclass(value, Method)]
    methods = [method for method in classes if not inspect.isabstract(method)]
    methods.sort(key=lambda method: (method is not Joint, get_args(Family).index(method.info.family)))
    return {method.__name__: method for method in methods}


#: Listing a class in ``__all__`` registers it: names, documentation tables and conformance tests follow.
_METHODS = _listed()
