"""``bmlr predict``: the class of new files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Literal

from rich.table import Table

from bmlr._console import make_console
from bmlr.data import Modality
from bmlr.data.readers.suffixes import modality_kind


def execute(run: Path, *, files: list[str], weights: Literal["best", "last"] = "best", json: bool = False) -> None:
    """Predict the class of one sample from its files.

    Example:
        bmlr predict runs/clips clip.mp4
        bmlr predict runs/digits audio=spoken.wav image=written.png

    Args:
        run: Directory of the run.
        files: One file per modality, as PATH or MODALITY=PATH.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        json: Print the probabilities of all classes as JSON.
    """
    from bmlr.training import load_run, predict_run

    config, _, _ = load_run(run, weights=weights)
    probabilities = predict_run(run, _assign_files(config.data.modalities, files), weights=weights)
    if json:
        print(dumps(probabilities, indent=2))
        return
    table = Table("from", "class", "probability", "next")
    for name, values in probabilities.items():
        ranked = sorted(values.items(), key=lambda item: -item[1])
        runners_up = ", ".join(f"{label} {value:.3f}" for label, value in ranked[1:3])
        table.add_row(name, ranked[0][0], f"{ranked[0][1]:.3f}", runners_up)
    make_console(120).print(table)


def _assign_files(modalities: Mapping[str, Modality], files: Sequence[str]) -> dict[str, Path]:
    """Files by modality, as named or by their suffix."""
    assigned: dict[str, Path] = {}
    for text in files:
        name, separator, path = text.partition("=")
        if not (separator and name in modalities):
            path = text
            kind = modality_kind(Path(text))
            candidates = [name for name, modality in modalities.items() if modality.kind == kind]
            if len(candidates) != 1:
                raise ValueError(
                    f"`files`: cannot tell the modality of {text} by its suffix. "
                    f"Write MODALITY={text} with one of {', '.join(modalities)}."
                )
            name = candidates[0]
        if name in assigned:
            raise ValueError(f"`files` should hold one file per modality. Found two of '{name}'.")
        assigned[name] = Path(path)
    return assigned
