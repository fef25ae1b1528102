"""Balanced multimodal learning: BMLR and the methods it is compared with.

``import bmlr`` needs torch and numpy only. Packages with further needs are attributes too, imported on first use:
:mod:`bmlr.data`, :mod:`bmlr.training`, :mod:`bmlr.diagnosis`, :mod:`bmlr.benchmark`, :mod:`bmlr.export`,
:mod:`bmlr.report`; so is :func:`bmlr.load`, which reads a run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bmlr import encoders, functional, fusion, methods, tasks
from bmlr._version import __version__
from bmlr.balancer import Balancer
from bmlr.batch import Batch
from bmlr.functional import ReshapedLabels, confidence_ratio, reshape_labels
from bmlr.methods import BMLR, Losses, Method
from bmlr.modality_dropout import ModalityDropout
from bmlr.model import MultimodalClassifier, Output
from bmlr.parameters import param_groups
from bmlr.wrapping import WrappedModel, wrap

if TYPE_CHECKING:
    from bmlr import benchmark as benchmark
    from bmlr import data as data
    from bmlr import diagnosis as diagnosis
    from bmlr import export as export
    from bmlr import report as report
    from bmlr import training as training
    from bmlr.training import load as load
else:  # hidden from type checkers, to which every misspelt name would be an attribute

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return importlib.import_module(f"bmlr.{name}")
        if name == "load":
            return importlib.import_module("bmlr.training").load
        raise AttributeError(f"module 'bmlr' has no attribute {name!r}")


_LAZY = ("benchmark", "data", "diagnosis", "export", "report", "training")

__all__ = [
    "BMLR",
    "Balancer",
    "Batch",
    "Losses",
    "Method",
    "ModalityDropout",
    "MultimodalClassifier",
    "Output",
    "ReshapedLabels",
    "WrappedModel",
    "__version__",
    "confidence_ratio",
    "encoders",
    "functional",
    "fusion",
    "methods",
    "param_groups",
    "reshape_labels",
    "tasks",
    "wrap",
]
