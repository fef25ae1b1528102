"""Files of a diagnosis."""

from __future__ import annotations

import functools
from pathlib import Path

from bmlr._files import atomic_write, atomic_write_text, json_text
from bmlr.diagnosis._blind import BlindModalityTest
from bmlr.diagnosis._diagnosis import Diagnosis


def write_diagnosis(
    diagnosis: Diagnosis | BlindModalityTest, directory: Path | str, *, figures: bool = True
) -> list[Path]:
    """Write ``diagnosis.json``, ``diagnosis.md`` and the figures as PNG.

    Args:
        diagnosis: The diagnosis, or a blind-modality test.
        directory: Folder, created if missing.
        figures: Draw figures, which needs matplotlib.

    Returns:
        The files written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write_text(directory / "diagnosis.json", json_text(diagnosis.as_dict()) + "\n")
    atomic_write_text(directory / "diagnosis.md", diagnosis.to_markdown())
    written = [directory / "diagnosis.json", directory / "diagnosis.md"]
    if figures:
        from bmlr.diagnosis.figures import draw_figures
        from bmlr.figures.style import save

        for name, figure in draw_figures(diagnosis).items():
            path = directory / f"{name}.png"
            atomic_write(path, functools.partial(save, figure, format="png", dpi=150))
            written.append(path)
    return written
