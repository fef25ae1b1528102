"""Decoded samples and cached arrays on disk."""

from bmlr.data.store._plausibility import describe_size

__all__ = ["describe_size"]
