"""What trainers of other libraries ask of a model and a method."""

from __future__ import annotations

from typing import Any

from bmlr.methods import EpochContext, EpochPlan, Method
from bmlr.model import MultimodalClassifier


def check_model(model: Any) -> None:
    """Raise a ValueError unless methods can train a model."""
    if not isinstance(model, MultimodalClassifier):
        raise ValueError(
            "`model` should be a bmlr.MultimodalClassifier, or a model of your own in bmlr.wrap(model, ...). "
            f"Found {type(model).__name__}."
        )


def check_one_pass(method: Method, reason: str) -> None:
    """Raise a ValueError if a method makes passes of its own.

    Args:
        method: The method.
        reason: Who cannot make them, and who can.
    """
    if method.plans_passes:
        raise ValueError(
            f"`method` should train by one pass over the data per epoch. {type(method).__name__} makes passes of "
            f"its own, which {reason}."
        )


def start_one_pass(method: Method, context: EpochContext) -> None:
    """Begin an epoch, which must be one pass over all samples."""
    if method.start_epoch(context) != EpochPlan():
        raise RuntimeError(f"{type(method).__name__} planned several passes: it should say `plans_passes`.")
