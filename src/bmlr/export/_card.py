"""Model card of a run, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._version import __version__
from bmlr.diagnosis import IntervalEstimate, Robustness, measure_run_robustness
from bmlr.diagnosis.measures import wilson_interval
from bmlr.runs import RunError, metric_names, read_predictions, read_run
from bmlr.tables import Cell, Table, format_count, join_names, list_first
from bmlr.tasks import metric_form, prediction_label
from bmlr.training import LoadedRun

_PROTOCOLS = {
    "clean": "no group of samples (speaker, actor, source video) is in two of training, validation and test",
    "paper": "the published split, in which groups of samples may be in training and test",
}
#: Classes that are named one by one.
_MAX_CLASSES = 30


def write_card(
    run: Path, loaded: LoadedRun, *, weights: str, formats: Sequence[str], masks: bool, root: Path | str | None
) -> str:
    """Text of the card: data, protocol, scores, what a missing modality costs, and how to load.

    Scores are measured where the data is at hand, else those of the finished run are shown.
    """
    config, model = loaded.config, loaded.model
    method, info = type(loaded.method).__name__, type(loaded.method).info
    robustness = _measure(run, model.modalities, weights, root)
    result = read_run(run).result or {}
    sections = [
        _front_matter(config.data.name, method, model.modalities),
        f"# {method} on {config.data.name}",
        (
            f"A model of {join_names(model.modalities)}, trained by {method} ([{info.paper}]({info.url}), {info.venue})"
            f" with bmlr {(result.get('versions') or {}).get('bmlr', __version__)}. Its task: {config.data.task.name}."
        ),
        "## Data and protocol",
        _data_lines(loaded, result),
        "## Scores on the test split",
        *_scores(run, loaded, result, robustness, weights),
        "## Inputs and outputs",
        _interface(loaded, masks=masks),
        "## Load it",
        _loading(run, loaded, formats, masks=masks),
        "## Training",
        _training_lines(loaded, result, weights),
    ]
    return "\n\n".join(sections) + "\n"


def _measure(run: Path, modalities: Sequence[str], weights: str, root: Path | str | None) -> Robustness | None:
    """Scores with all modalities and without each; None without the data."""
    try:
        return measure_run_robustness(run, {name: [1.0] for name in modalities}, weights=weights, root=root)
    except RunError:  # the data is missing, or other data
        if root is not None:
            raise
        return None


def _front_matter(data: str, method: str, modalities: Sequence[str]) -> str:
    tags = ["multimodal", *modalities, method, data]
    return "\n".join(["---", "library_name: bmlr", "tags:", *(f"- {_quoted(tag)}" for tag in tags), "---"])


def _data_lines(loaded: LoadedRun, result: Mapping[str, Any]) -> str:
    data = loaded.config.data
    lines = [f"* Data: `{data.name}`"]
    if protocol := getattr(data, "protocol", ""):
        meaning = f": {_PROTOCOLS[protocol]}" if protocol in _PROTOCOLS else ""
        lines.append(f"* Protocol `{protocol}`{meaning}")
    if samples := result.get("samples"):
        lines.append("* Samples: " + ", ".join(f"{count} {name}" for name, count in samples.items()))
    if data.classes:
        lines.append(f"* Classes: {len(data.classes)} ({list_first(data.classes, _MAX_CLASSES)})")
    return "\n".join(lines)


def _scores(
    run: Path,
    loaded: LoadedRun,
    result: Mapping[str, Any],
    robustness: Robustness | None,
    weights: str,
) -> list[str]:
    """Scores by modality, and what a missing modality costs."""
    if robustness is not None:
        scores = {name: robustness.format(score) for name, score in robustness.clean.scores.items()}
        table = Table(
            [robustness.metric, "score"], [[Cell(prediction_label(name)), Cell(text)] for name, text in scores.items()]
        )
        rows = [
            [label.removeprefix("missing "), robustness.format(score.scores["fused"]), robustness.format(score.lost)]
            for label, ((_, score),) in robustness.sweeps.items()
        ]
        heads = ["without", robustness.metric, robustness.lost_head]
        samples = format_count(robustness.samples, "sample")
        without = Table(heads, [[Cell(text) for text in row] for row in rows])
        return [
            f"{samples}, with 95 % intervals. Multimodal is the prediction from all modalities.",
            table.markdown(),
            *_majority(result),
            *(_metrics(result) if weights == "best" else []),
            "A modality that all samples lack costs:",
            without.markdown(),
        ]
    missing = (
        "What a missing modality costs was not measured, since the data was not at hand. "
        "`bmlr export RUN --data.root FOLDER` measures it."
    )
    is_best = weights == "best"
    accuracies = _recorded(run) if is_best and loaded.config.data.task.name == "multiclass" else {}
    if not accuracies:
        return [*(_metrics(result) if is_best else []), missing]
    rows = [[prediction_label(name), estimate.percent] for name, estimate in accuracies.items()]
    table = Table(["accuracy", "score"], [[Cell(text) for text in row] for row in rows])
    return [
        "As recorded when the run was finished, with 95 % intervals.",
        table.markdown(),
        *_majority(result),
        *_metrics(result),
        missing,
    ]


def _metrics(result: Mapping[str, Any]) -> list[str]:
    """Table of all metrics that a finished run recorded, multimodal and by modality."""
    test = result.get("test") or {}
    forms = [metric_form(name) for name in metric_names(test)]
    if not forms:
        return []
    unimodal = list(test[f"unimodal_{forms[0].name}"])
    rows = [[prediction_label("fused"), *(form.text(test[form.name]) for form in forms)]]
    rows += [[u, *(form.text(test[f"unimodal_{form.name}"].get(u)) for form in forms)] for u in unimodal]
    table = Table(["metric", *(form.title for form in forms)], [[Cell(text) for text in row] for row in rows])
    return ["All metrics of the finished run:", table.markdown()]


def _recorded(run: Path) -> dict[str, IntervalEstimate]:
    """Accuracies of the predictions that a finished run keeps."""
    try:
        predictions = read_predictions(run)
    except (FileNotFoundError, ValueError):
        return {}
    targets = predictions.pop("targets")
    accuracies = {}
    for name, classes in predictions.items():
        has = classes >= 0
        if has.any():
            rate = float(np.mean(classes[has] == targets[has]))
            accuracies[name] = IntervalEstimate(rate, *wilson_interval(rate, int(has.sum())))
    return accuracies


def _majority(result: Mapping[str, Any]) -> list[str]:
    value, form = result.get("constant_score"), metric_form(str(result.get("metric", "accuracy")))
    if value is None:
        return []
    if form.name == "accuracy":
        return [f"Always guessing the most frequent class has {form.text(value)}."]
    return [f"The best constant prediction has {form.title} {form.text(value)}."]


def _interface(loaded: LoadedRun, *, masks: bool) -> str:
    forms = loaded.config.model_data.modalities
    rows = [
        [name, forms[name].kind, f"(B, {', '.join(map(str, forms[name].shape))})"]
        for name in loaded.model.modalities
        if name in forms
    ]
    if masks:
        rows += [[f"{name}_present", "mask of the samples that have it", "(B)"] for name in loaded.model.modalities]
    table = Table(["input", "kind", "shape"], [[Cell(text) for text in row] for row in rows])
    width = loaded.model.task.num_outputs
    outputs = ", ".join(f"`{name}_logits`" for name in loaded.model.modalities)
    return (
        f"{table.markdown()}\n\nOutputs: `logits`, of shape (B, {width}), by the method's prediction from all "
        f"modalities, and {outputs} by one each. The number of samples B is free."
    )


def _loading(run: Path, loaded: LoadedRun, formats: Sequence[str], *, masks: bool) -> str:
    names = loaded.model.modalities
    files = ", ".join(f'"{name}": "new-{name}"' for name in names)
    prediction = f'run = bmlr.load("{run.resolve().name}")\nprediction = run.predict({{{files}}})["fused"]'
    lines = [
        "Files as they are, with the preprocessing of training, by the folder of the run:",
        _python("import bmlr", prediction),
    ]
    tensors = ", ".join(f'"{name}": {name}' for name in names)
    present = ", ".join(f'"{name}": {name}_present' for name in names)
    feed = tensors + (", " + ", ".join(f'"{name}_present": {name}_present' for name in names) if masks else "")
    if "pt2" in formats:
        arguments = f"{{{tensors}}}, {{{present}}}" if masks else f"{{{tensors}}}"
        program = 'program = torch.export.load("model.pt2").module()'
        lines += [
            "Tensors, such as those of `run.read(files)`, without bmlr:",
            _python("import torch", f'{program}\nlogits = program({arguments})["logits"]'),
        ]
    if "onnx" in formats:
        session = 'session = onnxruntime.InferenceSession("model.onnx")'
        lines += [
            "Arrays, without torch:",
            _python("import onnxruntime", f"{session}\nlogits, *_ = session.run(None, {{{feed}}})"),
        ]
    lines.append("`model.safetensors` holds the weights alone, for `load_state_dict` of the model.")
    return "\n\n".join(lines)


def _python(imported: str, code: str) -> str:
    return f"```python\n{imported}\n\n{code}\n```"


def _training_lines(loaded: LoadedRun, result: Mapping[str, Any], weights: str) -> str:
    config = loaded.config
    lines = [f"* Seed {config.seed}, batches of {format_count(config.batch_size, 'sample')}"]
    if result:
        epochs = format_count(result["epochs"], "epoch")
        if weights == "best":
            lines.append(f"* {epochs}, of which epoch {result['best_epoch'] + 1} was selected on validation")
        else:
            lines.append(f"* {epochs}, weights of the last")
        lines.append(f"* Digest of the configuration: `{result['digest']}`")
    else:
        lines.append("* The run is not finished")
    parameters = sum(p.numel() for p in loaded.model.parameters())
    lines.append(f"* {parameters:,} parameters".replace(",", " "))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
