"""``bmlr predict``: classes of new files."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from bmlr._console import make_console
from bmlr._files import atomic_write_text, check_output, json_text
from bmlr.tables import format_percent


def execute(
    run: Path,
    *,
    files: list[Path],
    weights: Literal["best", "last"] = "best",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Predict the classes of new files.

    Example:
        bmlr predict runs/digits examples/seven.wav examples/seven.png
        bmlr predict runs/clips *.mp4 --out predictions.csv
        bmlr predict runs/pets new.csv --json

    Args:
        run: Directory of the run, which is all that is needed of it.
        files: One file per modality, as PATH or MODALITY=PATH; of many samples, files of one name per sample, folders,
            or tables (CSV) with a column per modality.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        json: Print the probabilities of all classes as JSON, a list of samples.
        out: CSV file of all predictions.
    """
    if out is not None:
        check_output("--out", out, is_folder=False)
    from bmlr.data.sets.new_samples import list_new_samples
    from bmlr.runs import RunError
    from bmlr.training import load

    loaded = load(run, weights=weights)
    samples = list_new_samples([str(path) for path in files], loaded.config.model_data.modalities)
    results: list[dict[str, Any]] = []
    failed = []
    for sample in samples:
        result: dict[str, Any] = {"sample": sample.name, "files": {u: str(path) for u, path in sample.files.items()}}
        try:
            with _print_warnings():
                probabilities = loaded.predict(sample.files)
            fused = probabilities["fused"]
            result |= {"class": max(fused, key=lambda label: fused[label]), "probabilities": probabilities}
        except (ValueError, OSError) as error:
            if len(samples) == 1:
                raise
            message = " ".join(str(error).split())
            result["error"] = message
            failed.append(sample.name)
            print(f"bmlr: {sample.name} cannot be predicted: {message}", file=sys.stderr)
        results.append(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(out, _csv_text(results, loaded.config.data.classes, list(loaded.model.modalities)))
    if json:
        print(json_text(results))
    elif len(results) == 1:
        _print_one(results[0]["probabilities"])
    else:
        _print_many(results, list(loaded.model.modalities))
    if failed:
        raise RunError(f"{len(failed)} of {len(samples)} samples could not be predicted: {', '.join(failed[:5])}.")


@contextlib.contextmanager
def _print_warnings() -> Iterator[None]:
    """Print each warning once, as a sentence without its place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"bmlr: {message}", file=sys.stderr)


def _best(probabilities: dict[str, float]) -> tuple[str, float]:
    return max(probabilities.items(), key=lambda item: item[1])


def _print_one(probabilities: dict[str, dict[str, float]]) -> None:
    table = Table("from", "class", "probability", "next")
    for name, values in probabilities.items():
        ranked = sorted(values.items(), key=lambda item: -item[1])
        runners_up = ", ".join(f"{label} {format_percent(value)}" for label, value in ranked[1:3])
        table.add_row(name, ranked[0][0], format_percent(ranked[0][1]), runners_up)
    make_console(120).print(table)


def _print_many(results: Sequence[dict[str, Any]], modalities: Sequence[str]) -> None:
    table = Table("sample", "class", "probability", *(f"by {name}" for name in modalities))
    for result in results:
        probabilities = result.get("probabilities")
        if probabilities is None:
            table.add_row(result["sample"], "–", "–", *("–" for _ in modalities))
            continue
        label, probability = _best(probabilities["fused"])
        alone = (_best(probabilities[name])[0] if name in probabilities else "–" for name in modalities)
        table.add_row(result["sample"], label, format_percent(probability), *alone)
    make_console(120).print(table)


def _csv_text(results: Sequence[dict[str, Any]], classes: Sequence[str], modalities: Sequence[str]) -> str:
    """A row per sample: class, its probability, classes by each modality, probabilities of all classes, error."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    by_modality = [f"class by {name}" for name in modalities]
    writer.writerow(["sample", "class", "probability", *by_modality, *(f"P({name})" for name in classes), "error"])
    for result in results:
        probabilities = result.get("probabilities")
        if probabilities is None:
            writer.writerow([result["sample"], *[""] * (2 + len(modalities) + len(classes)), result["error"]])
            continue
        label, probability = _best(probabilities["fused"])
        alone = [_best(probabilities[name])[0] if name in probabilities else "" for name in modalities]
        fused = [probabilities["fused"][name] for name in classes]
        writer.writerow([result["sample"], label, probability, *alone, *fused, ""])
    return stream.getvalue()
