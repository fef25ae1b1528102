"""``bmlr export``: the model of a run as files for services."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bmlr.commands._printing import DataLocation


def execute(
    run: Path,
    *,
    out: Path | None = None,
    weights: Literal["best", "last"] = "best",
    formats: list[Literal["pt2", "onnx"]] | None = None,
    masks: bool = False,
    tolerance: float = 1e-4,
    data: DataLocation = DataLocation(),  # noqa: B008  (the parser reads defaults from the signature)
) -> None:
    """Write the model of a run for services.

    Example:
        bmlr export runs/digits
        bmlr export runs/digits --formats pt2 --masks --out models/digits

    Args:
        run: Directory of a finished run.
        out: Folder of the files; by default "export" in the run's directory.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        formats: Programs to write, of torch.export and ONNX; by default both.
        masks: Let the programs take a mask per modality too, of the samples that have it.
        tolerance: Largest difference of a program's logits from the model's own, in units of the largest logit, or of 1
            if that is smaller.
        data: Data of the run, which tells the model card what a missing modality costs.
    """
    from bmlr.export import export_run

    export = export_run(
        run,
        out,
        weights=weights,
        formats=formats or ("pt2", "onnx"),
        masks=masks,
        tolerance=tolerance,
        root=data.root,
    )
    for name, difference in export.differences.items():
        print(f"model.{name}: logits differ from the model's own by at most {difference:.1g}")
    print("\n".join(map(str, export.files)))
