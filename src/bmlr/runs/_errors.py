"""Errors of runs."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run cannot start, continue or be read; the message says why and what to do."""


class RunInterruptedError(RunError):
    """A run was stopped from outside; it can be resumed."""
