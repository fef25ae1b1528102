"""Errors of runs."""

from __future__ import annotations


class RunError(RuntimeError):
    """Error of a run, with the remedy."""


class MissingDataError(RunError):
    """The data of a run is not where it was."""


class RunInterruptedError(RunError):
    """Stop of a run from outside; the run can be resumed."""
