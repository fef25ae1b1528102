"""``bmlr evaluate``: scores of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bmlr.commands._printing import DataLocation, describe_samples, print_scores

if TYPE_CHECKING:
    from bmlr.diagnosis import Levels


def execute(
    run: Path,
    split: Literal["train", "val", "test"] = "test",
    weights: Literal["best", "last"] = "best",
    missing: list[str] | None = None,
    noise: list[str] | None = None,
    seed: int = 0,
    out: Path | None = None,
    data: DataLocation = DataLocation(),  # noqa: B008  (the parser reads defaults from the signature)
) -> None:
    """Score the weights of a run on a split.

    Example:
        bmlr evaluate runs/digits
        bmlr evaluate runs/digits --split val --weights last
        bmlr evaluate runs/digits --missing audio image
        bmlr evaluate runs/digits --missing audio=0.5 --noise image=0,0.5,1,2
        bmlr evaluate runs/pets --data.root /new/place/of/prepared

    Args:
        run: Directory of a finished or interrupted run.
        split: Split of the data.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        missing: Modalities that samples lose at a rate, as audio=0.5; several rates make a curve, as audio=0,0.5,1,
            and audio alone stands for 0,0.25,0.5,0.75,1.
        noise: Modalities under normal noise, in units of the standard deviation of their input on training data, as
            audio=0.5; several levels make a curve, and audio alone stands for 0,0.25,0.5,1,2.
        seed: Seed of what is missing and of the noise.
        out: Folder of the tables and curves of missing and noise; by default "robustness" in the run's directory.
        data: Data of the run.
    """
    if missing or noise:
        _evaluate_corrupted(run, split, weights, missing or [], noise or [], seed, out, data)
        return
    if out is not None or seed:
        raise ValueError(f"Option --{'out' if out is not None else 'seed'} needs --missing or --noise.")
    from bmlr.runs import MissingDataError
    from bmlr.training import evaluate_run

    score: Mapping[str, Any]
    try:
        measured = evaluate_run(run, split=split, weights=weights, root=data.root)
        score, metric = measured.as_dict(), measured.metric
    except MissingDataError as error:
        recorded = _recorded_score(run, split, weights)
        if recorded is None or data.root is not None:
            raise
        print(f"{error} These are the scores recorded when the run was finished.")
        score, metric = recorded
    print_scores(str(run), {f"{split}, {weights} weights": score}, metric)
    print(describe_samples(split, score, metric))


def _evaluate_corrupted(
    run: Path,
    split: Literal["train", "val", "test"],
    weights: str,
    missing: Sequence[str],
    noise: Sequence[str],
    seed: int,
    out: Path | None,
    data: DataLocation,
) -> None:
    """Score a run under missing and noisy modalities."""
    from bmlr._console import make_console
    from bmlr.commands._printing import print_table
    from bmlr.diagnosis import LEVELS, RATES, measure_run_robustness, write_robustness
    from bmlr.runs.layout import ROBUSTNESS

    robustness = measure_run_robustness(
        run,
        _levels("--missing", missing, RATES),
        _levels("--noise", noise, LEVELS),
        split=split,
        weights=weights,
        seed=seed,
        root=data.root,
    )
    files = write_robustness(robustness, run / ROBUSTNESS if out is None else out)
    console = make_console(160)
    print_table(robustness.table(), console)
    console.print(robustness.caption, style="dim")
    print("\n".join(map(str, files)))


def _levels(option: str, words: Sequence[str], default: Sequence[float]) -> dict[str, Levels]:
    """Rates or levels by modality, from words such as ``audio=0,0.5`` and ``audio``.

    Raises:
        ValueError: If a word has no numbers, or a modality is there twice.
    """
    levels: dict[str, Levels] = {}
    for word in words:
        name, separator, text = word.rpartition("=")
        name = name if separator else word
        if name in levels:
            raise ValueError(f"Option {option} names {name} twice: give its values in one word, as {name}=0,0.5,1.")
        try:
            values = [float(number) for number in text.split(",")] if separator else list(default)
        except ValueError as error:
            raise ValueError(
                f"Option {option} should be modalities with numbers, as audio=0.5 or audio=0,0.5,1. Found {word}."
            ) from error
        levels[name] = values if len(values) > 1 else values[0]
    return levels


def _recorded_score(run: Path, split: str, weights: str) -> tuple[Mapping[str, Any], str] | None:
    """Score in the result of a finished run, and its primary metric; None if it has none of this split and weights."""
    from bmlr.runs import read_result
    from bmlr.runs.layout import RESULT

    name = {"test": "test", "val": "validation"}.get(split)
    if name is None or weights != "best" or not (run / RESULT).is_file():
        return None
    result = read_result(run)
    return result[name], result["metric"]
