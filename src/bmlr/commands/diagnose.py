"""``bmlr diagnose``: the undertrained modality of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from rich.panel import Panel

from bmlr._console import make_console
from bmlr._files import check_output
from bmlr.commands._printing import DataLocation, print_table


def execute(
    run: Path,
    split: Literal["train", "val", "test"] = "val",
    weights: Literal["best", "last"] = "best",
    removal: Literal["absent", "zero", "mean", "shuffle", "noise"] = "absent",
    probe: bool = False,
    alone: Path | None = None,
    out: Path | None = None,
    data: DataLocation = DataLocation(),  # noqa: B008  (the parser reads defaults from the signature)
) -> None:
    """Find the undertrained modalities of a run.

    Example:
        bmlr diagnose runs/digits
        bmlr diagnose runs/digits --probe --out diagnosis

    Args:
        run: Directory of a finished run.
        split: Split of the data; keep the test split for one final reading.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        removal: Replacement of a removed modality: features of zero (absent), or inputs of zero, of the mean, of
            other samples (shuffle), or of noise.
        probe: Train every modality alone too, which tells an undertrained modality from an uninformative one and takes
            about as long as the run.
        alone: Folder of the runs trained alone, reused if there; by default beside the run's directory.
        out: Folder for diagnosis.json, diagnosis.md and figures; by default "diagnosis" in the run's directory.
        data: Data of the run.
    """
    if out is not None:
        check_output("--out", out, is_folder=True)
    from bmlr.diagnosis import RemovalOptions, diagnose_run, write_diagnosis
    from bmlr.runs.layout import DIAGNOSIS
    from bmlr.training import is_first_process

    diagnosis = diagnose_run(
        run,
        split=split,
        weights=weights,
        removal=RemovalOptions(removal),
        probe=probe,
        alone=alone,
        root=data.root,
        progress=lambda line: print(line, file=sys.stderr),
    )
    if not is_first_process():  # a run of several processes is probed by as many
        return
    files = write_diagnosis(diagnosis, run / DIAGNOSIS if out is None else out)
    console = make_console(200)
    for table in diagnosis.tables():
        print_table(table, console)
    console.print(diagnosis.caption, style="dim")
    console.print(Panel(diagnosis.paragraph, title="verdict"))
    print("\n".join(map(str, files)))
