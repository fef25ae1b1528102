"""Export of a model or a run into a folder."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_non_negative
from bmlr._extras import missing_extra
from bmlr._modes import module_mode
from bmlr.data import Modality
from bmlr.export._card import write_card
from bmlr.export._programs import PredictionModule, largest_difference, trace, write_onnx, write_program
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.runs.layout import EXPORT
from bmlr.runs.storage import write_weights
from bmlr.wrapping import WrappedModel

Format: TypeAlias = Literal["pt2", "onnx"]
_LABELS = {"pt2": "The torch.export program", "onnx": "The ONNX program"}
#: Samples of the example inputs that are drawn by their shapes.
_EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Export:
    """Files of an exported model.

    Attributes:
        directory: Their folder.
        files: Their paths.
        differences: Largest difference of the logits of each program from the model's own, by format.
    """

    directory: Path
    files: tuple[Path, ...]
    differences: Mapping[str, float]


def export_model(
    model: MultimodalClassifier,
    example: Mapping[str, Any],
    directory: Path | str,
    *,
    method: Method | None = None,
    formats: Sequence[Format] = ("pt2", "onnx"),
    masks: bool = False,
    tolerance: float = 1e-4,
    classes: Sequence[str] = (),
    card: str | None = None,
) -> Export:
    """Write a model as programs and plain weights, each checked against the model's own answers.

    * ``model.pt2``: a program of :mod:`torch.export`: inputs by modality to a dictionary of logits, ``logits`` and
      ``<modality>_logits``, by the method's prediction. The number of samples is free.
    * ``model.onnx``: the same for ONNX Runtime and others, inputs named by modality.
    * ``model.safetensors``: the state dict of the model; of a wrapped model, with the names of the model itself.
    * ``method.safetensors``: the state dict of the method, if it has parameters.

    All files are written, or none.

    Args:
        model: The model; also one of :func:`bmlr.wrap`.
        example: Inputs by modality, at least two samples, on the CPU.
        directory: Folder, created if missing; files of these names in it are replaced.
        method: The method it was trained by, whose predictions count; None takes the model's logits.
        formats: Programs to write.
        masks: Let the programs take a mask of presence per modality too: of absent modalities the placeholder counts
            nothing.
        tolerance: Largest difference of logits allowed, in units of the largest logit, or of 1 if that is smaller.
        classes: Names of the classes, kept in the programs.
        card: Text of a model card, written as ``README.md``.

    Raises:
        ValueError: If an argument does not fit.
        RunError: If the model cannot be exported, or a program gives other answers.
        ModuleNotFoundError: If a library of the ``export`` extra is missing.
    """
    for name in formats:
        check_choice("formats", name, _LABELS)
    check_non_negative("tolerance", tolerance)
    module = PredictionModule(model, method)
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    differences: dict[str, float] = {}
    metadata = {"modalities": json.dumps(list(model.modalities)), "classes": json.dumps(list(classes))}
    with (
        module_mode(module, training=False),
        tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as temporary,
    ):
        folder = Path(temporary)
        if formats:
            with torch.no_grad():
                outputs = list(module(example))
            program = trace(module, example, masks=masks)
        for kind in formats:
            path = folder / f"model.{kind}"
            try:
                if kind == "pt2":
                    run = write_program(program, path, metadata)
                else:
                    run = write_onnx(program, path, metadata, inputs=example, outputs=outputs, masks=masks)
            except ModuleNotFoundError as error:
                raise missing_extra(error) from error
            differences[kind] = largest_difference(
                run, module, example, masks=masks, tolerance=tolerance, label=_LABELS[kind]
            )
        state: nn.Module = model.net if isinstance(model, WrappedModel) else model
        write_weights(folder / "model.safetensors", state.state_dict())
        if method is not None and next(method.parameters(), None) is not None:
            write_weights(folder / "method.safetensors", method.state_dict())
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        files = [path.replace(directory / path.name) for path in sorted(folder.iterdir())]
    return Export(directory, tuple(files), differences)


def export_run(
    run: Path | str,
    directory: Path | str | None = None,
    *,
    weights: str = "best",
    formats: Sequence[Format] = ("pt2", "onnx"),
    masks: bool = False,
    tolerance: float = 1e-4,
    root: Path | str | None = None,
) -> Export:
    """Write the model of a run as programs, plain weights and a model card; see :func:`export_model`.

    Args:
        run: Directory of the run. Its data is needed only to measure, for the card, what a missing modality costs.
        directory: Folder of the files; None takes ``export`` in the run's directory.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        formats: Programs to write.
        masks: Let the programs take a mask of presence per modality too.
        tolerance: Largest difference of logits allowed, as :func:`export_model` has it.
        root: Folder of the data, if it was moved.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged, the model cannot be exported, a program gives other answers, or
            there is no such data in ``root``.
        ModuleNotFoundError: If a library of the ``export`` extra is missing.
    """
    from bmlr.training import load

    run = Path(run).expanduser()
    loaded = load(run, weights=weights)
    example = example_inputs(loaded.config.model_data.modalities, like=next(loaded.model.parameters()))
    return export_model(
        loaded.model,
        example,
        run / EXPORT if directory is None else directory,
        method=loaded.method,
        formats=formats,
        masks=masks,
        tolerance=tolerance,
        classes=loaded.config.data.classes,
        card=write_card(run, loaded, weights=weights, formats=formats, masks=masks, root=root),
    )


def example_inputs(modalities: Mapping[str, Modality], *, like: Tensor) -> dict[str, Any]:
    """Normal inputs of the modalities' shapes, (4, …), in the type of a tensor; of texts, tokens 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, form in modalities.items():
        shape = (_EXAMPLES, *form.shape)
        if form.kind == "text":
            inputs[name] = torch.randint(2, shape, generator=generator)
        else:
            inputs[name] = torch.randn(shape, generator=generator).to(like)
    return inputs
