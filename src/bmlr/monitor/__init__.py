"""Recording of gradients during training. Needs torch and numpy only."""

from bmlr.monitor._gradients import (
    GRADIENTS,
    GradientMonitor,
    batch_conflict,
    gradient_conflict,
    gradient_norms,
    read_gradients,
    summarise_gradients,
)

__all__ = [
    "GRADIENTS",
    "GradientMonitor",
    "batch_conflict",
    "gradient_conflict",
    "gradient_norms",
    "read_gradients",
    "summarise_gradients",
]
