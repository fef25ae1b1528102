"""``bmlr evaluate``: scores of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
    from bmlr.runs import MissingDataError
    from bmlr.training import evaluate_run

    score: Mapping[str, Any]
    try:
        score = evaluate_run(run, split=split, weights=weights, root=data.root).as_dict()
    except MissingDataError as error:
        recorded = _recorded_score(run, split, weights)
        if recorded is None or data.root is not None:
            raise
        print(f"{error} These are the scores recorded when the run was finished.")
        score = recorded
    print_scores(str(run), {f"{split}, {weights} weights": score})
    print(describe_samples(split, score))


def _recorded_score(run: Path, split: str, weights: str) -> Mapping[str, Any] | None:
    """Score in the result of a finished run; None if it has none of this split and weights."""
    from bmlr.runs import read_result
    from bmlr.runs.layout import RESULT

    name = {"test": "test", "val": "validation"}.get(split)
    if name is None or weights != "best" or not (run / RESULT).is_file():
        return None
    score: Mapping[str, Any] = read_result(run)[name]
    return score
