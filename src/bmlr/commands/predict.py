"""``bmlr predict``: classes, labels or numbers of new files."""

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
from bmlr.tasks import prediction_label

_LIKELY = 0.5  # a label is predicted above it
#: Columns of the multimodal prediction, by task.
_HEADS = {"regression": ["target"], "multilabel": ["labels"], "multiclass": ["class", "probability"]}


def execute(
    run: Path,
    *,
    files: list[str],
    weights: Literal["best", "last"] = "best",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Predict the classes, labels or numbers of new files.

    Example:
        bmlr predict runs/digits examples/seven.wav examples/seven.png
        bmlr predict runs/clips *.mp4 --out predictions.csv
        bmlr predict runs/pets new.csv --json

    Args:
        run: Directory of the run, which is all that is needed of it.
        files: One file per modality, as PATH or MODALITY=PATH, a text itself as MODALITY="TEXT"; of many samples,
            files of one name per sample, folders, or tables (CSV) with a column per modality.
        weights: Weights of the epoch selected on validation, or of the last epoch.
        json: Print the probabilities of all classes or labels, or the numbers, as JSON, a list of samples.
        out: CSV file of all predictions.
    """
    if out is not None:
        check_output("--out", out, is_folder=False)
    from bmlr.data.sets.new_samples import list_new_samples
    from bmlr.runs import RunError
    from bmlr.training import load

    loaded = load(run, weights=weights)
    task = loaded.config.data.task.name
    samples = list_new_samples(files, loaded.config.model_data.modalities)
    results: list[dict[str, Any]] = []
    failed = []
    for sample in samples:
        result: dict[str, Any] = {"sample": sample.name, "files": {u: str(path) for u, path in sample.files.items()}}
        try:
            with _print_warnings():
                predicted = loaded.predict(sample.files)
            result |= _result_of(predicted, task)
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
        atomic_write_text(out, _csv_text(results, task, loaded.config.data.classes, list(loaded.model.modalities)))
    if json:
        print(json_text(results))
    elif len(results) == 1:
        _print_one(_values(results[0]) or {}, task)
    else:
        _print_many(results, task, list(loaded.model.modalities))
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


def _result_of(predicted: dict[str, dict[str, float]], task: str) -> dict[str, Any]:
    """Entries of a prediction: the answer, and what each modality says."""
    if task == "regression":
        return {"targets": predicted}
    fused = predicted["fused"]
    if task == "multilabel":
        return {"labels": _labels(fused), "probabilities": predicted}
    return {"class": _best(fused)[0], "probabilities": predicted}


def _values(result: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    """What each modality says; None of a sample that cannot be predicted."""
    values: dict[str, dict[str, float]] | None = result.get("probabilities", result.get("targets"))
    return values


def _best(probabilities: dict[str, float]) -> tuple[str, float]:
    return max(probabilities.items(), key=lambda item: item[1])


def _labels(probabilities: dict[str, float]) -> list[str]:
    """Labels that are more probable than not."""
    return [label for label, value in probabilities.items() if value > _LIKELY]


def _answer(values: dict[str, float], task: str) -> str:
    """The prediction in a cell of a table."""
    if task == "regression":
        return ", ".join(f"{value:.4g}" for value in values.values())
    return (", ".join(_labels(values)) or "none") if task == "multilabel" else _best(values)[0]


def _print_one(predicted: dict[str, dict[str, float]], task: str) -> None:
    more = {"regression": [], "multilabel": ["probabilities"], "multiclass": ["next"]}
    table = Table("from", *_HEADS[task], *more[task])
    for name, values in predicted.items():
        ranked = [f"{label} {format_percent(value)}" for label, value in sorted(values.items(), key=lambda u: -u[1])]
        others: list[str] = []
        if task == "multilabel":
            others = [", ".join(ranked[:5])]
        elif task == "multiclass":
            others = [format_percent(_best(values)[1]), ", ".join(ranked[1:3])]
        table.add_row(prediction_label(name), _answer(values, task), *others)
    make_console(120).print(table)


def _print_many(results: Sequence[dict[str, Any]], task: str, modalities: Sequence[str]) -> None:
    head = _HEADS[task]
    table = Table("sample", *head, *(f"by {name}" for name in modalities))
    for result in results:
        if (predicted := _values(result)) is None:
            table.add_row(result["sample"], *("–" for _ in [*head, *modalities]))
            continue
        fused = predicted["fused"]
        cells = [_answer(fused, task), *([format_percent(_best(fused)[1])] if task == "multiclass" else [])]
        alone = (_answer(predicted[name], task) if name in predicted else "–" for name in modalities)
        table.add_row(result["sample"], *cells, *alone)
    make_console(120).print(table)


def _csv_text(results: Sequence[dict[str, Any]], task: str, classes: Sequence[str], modalities: Sequence[str]) -> str:
    """A row per sample: the answer, those of each modality, probabilities of all classes or labels, error."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    answer = _HEADS[task][0]
    head = [*_HEADS[task], *(f"{answer} by {name}" for name in modalities), *(f"P({name})" for name in classes)]
    writer.writerow(["sample", *head, "error"])
    for result in results:
        if (predicted := _values(result)) is None:
            writer.writerow([result["sample"], *[""] * len(head), result["error"]])
            continue
        sources = [predicted.get(name) for name in ("fused", *modalities)]
        if task == "regression":
            answers: list[Any] = ["" if values is None else next(iter(values.values())) for values in sources]
        elif task == "multilabel":
            answers = ["" if values is None else "|".join(_labels(values)) or "|" for values in sources]
        else:
            answers = ["" if values is None else _best(values)[0] for values in sources]
            answers.insert(1, _best(predicted["fused"])[1])
        writer.writerow([result["sample"], *answers, *(predicted["fused"][name] for name in classes), ""])
    return stream.getvalue()
