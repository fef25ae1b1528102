"""Consoles that print names as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_console(width: int | None = None, *, stderr: bool = False) -> Console:
    """Console as wide as the terminal, or ``width`` columns where the output goes elsewhere.

    Labels, modalities and folders have names such as ``[music]`` or ``:cat:``, which rich would read as markup.

    Example:
        >>> make_console(80).print("[music] :cat:")
        [music] :cat:
    """
    from rich.console import Console  # comes with the ``train`` and ``media`` extras

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if width is not None and not console.is_terminal:
        console.width = width
    return console
