"""Balanced multimodal learning: BMLR and the methods it is compared with.

``import bmlr`` needs torch and numpy only. Data sets, training and figures live in submodules that import more:
:mod:`bmlr.data`, :mod:`bmlr.training`.
"""

from bmlr import encoders, functional, fusion, methods
from bmlr._version import __version__
from bmlr.batch import Batch
from bmlr.functional import ReshapedLabels, confidence_ratio, reshape_labels
from bmlr.methods import BMLR, Losses, Method
from bmlr.model import MultimodalClassifier, Output

__all__ = [
    "BMLR",
    "Batch",
    "Losses",
    "Method",
    "MultimodalClassifier",
    "Output",
    "ReshapedLabels",
    "__version__",
    "confidence_ratio",
    "encoders",
    "functional",
    "fusion",
    "methods",
    "reshape_labels",
]
