"""Formulas are tested one call at a time; ``conformance/test_own_loop.py`` tests that a loop makes every call."""

import pytest

from bmlr.methods import Method


@pytest.fixture(autouse=True)
def _single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test compute losses without the calls of a loop around them."""
    monkeypatch.setattr(Method, "_check_calls", lambda *_: None)
    monkeypatch.setattr(Method, "check_step", lambda *_: None)
