"""``bmlr evaluate``: scores of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bmlr.commands._printing import DataLocation, describe_samples, print_scores


def execute(
    run: Path,
    split: Literal["train", "val", "test"] = "test",
    weights: Literal["best", "last"] = "best",
    data: DataLocation = DataLocation(),  # noqa: B008  (the parser reads defaults from the signature)
) -> None:
    """Score the weights of a run on a split.

    Example:
        bmlr evaluate runs/digits
        bmlr evaluate runs/digits --split val --weights last
        bmlr evaluate runs/pets --data.root /new/place/of/prepared

    Args:
        run: Directory of a finished or interrupted run.
        split: Split of the data.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        data: Data of the run.
    """
    from bmlr.training import evaluate_run

    score = evaluate_run(run, split=split, weights=weights, root=data.root)
    print_scores(str(run), {f"{split}, {weights} weights": score.as_dict()})
    print(describe_samples(split, score.as_dict()))
