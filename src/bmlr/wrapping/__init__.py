"""Models of one's own: an unchanged ``nn.Module`` with the interface that methods train."""

from __future__ import annotations

from bmlr.wrapping._wrap import WrappedModel, wrap

__all__ = ["WrappedModel", "wrap"]
