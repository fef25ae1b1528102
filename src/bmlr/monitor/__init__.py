"""Gradients recorded while a model trains. Needs torch and numpy only."""

from bmlr.monitor._gradients import (
    GradientMonitor,
    batch_conflict,
    gradient_conflict,
    gradient_norms,
    read_gradients,
    summarise_gradients,
)

__all__ = [
    "GradientMonitor",
    "batch_conflict",
    "gradient_conflict",
    "gradient_norms",
    "read_gradients",
    "summarise_gradients",
]
