"""Standardisation of inputs."""

from __future__ import annotations

import numpy as np


def standardise(values: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Values minus the mean ``statistics[0]``, divided by the standard deviation ``statistics[1]``, float32."""
    standardised: np.ndarray = ((values - statistics[0]) / statistics[1]).astype(np.float32)
    return standardised
