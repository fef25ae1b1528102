"""Programs of a model: written, read back and compared with the model itself."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmlr.batch import input_size, map_tensors, named_tensors
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunError

#: Batch sizes in which a program is compared with its model.
_SIZES = (1, 2, 5)

#: Runs a program: inputs and masks of presence to logits by output name.
Runner = Callable[[dict[str, Any], dict[str, Tensor] | None], dict[str, Tensor]]


class PredictionModule(nn.Module):
    """Inputs by modality to the logits that a method predicts by.

    Args:
        model: The model.
        method: The method; None takes the model's own logits.
    """

    def __init__(self, model: MultimodalClassifier, method: Method | None = None) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Multimodal logits and those of each modality, by output name.

        Args:
            inputs: The input of each modality, first dimension B.
            present: Presence of each modality, boolean, shape (B,) per name.
        """
        output = self.model(inputs, present)
        if self.method is None:
            prediction = Prediction(output.logits, output.unimodal_logits)
        else:
            prediction = self.method.predict(output)
        return {"logits": prediction.logits} | {f"{u}_logits": x for u, x in prediction.unimodal_logits.items()}


def trace(module: PredictionModule, inputs: Mapping[str, Any], *, masks: bool) -> torch.export.ExportedProgram:
    """Trace a module into a program with a dynamic batch size.

    Args:
        module: The module, in evaluation mode.
        inputs: Example inputs by modality, B ≥ 2.
        masks: Let the program take masks of presence too.

    Raises:
        RunError: If the model cannot be traced.
    """
    batch = torch.export.Dim("batch")
    arguments: tuple[Any, ...] = (dict(inputs),)
    if masks:
        arguments = (dict(inputs), _masks(inputs, torch.Generator().manual_seed(0)))
    shapes = tuple(_batch_axes(argument, batch) for argument in arguments)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, arguments, dynamic_shapes=shapes)
    except Exception as error:  # a model may fail in any way under symbolic shapes
        raise RunError(
            f"The model cannot be exported: {_reason(error)} Shapes and branches of a module's forward should not "
            "depend on values or on the number of samples, as by len(x), int(x.sum()) or `if x.any()`."
        ) from error


def write_program(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> Runner:
    """Write a ``.pt2`` file; give what runs it."""
    with _quiet():
        torch.export.save(program, path, extra_files=dict(metadata))
        module = torch.export.load(path).module()

    def run(inputs: dict[str, Any], present: dict[str, Tensor] | None) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = module(inputs) if present is None else module(inputs, present)
        return outputs

    return run


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    *,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    masks: bool,
) -> Runner:
    """Write an ONNX file; give what runs it by ONNX Runtime.

    Args:
        program: The traced program.
        path: The file.
        metadata: Texts kept in the file.
        inputs: Example inputs, whose names those of the file follow: ``audio``, ``text.input_ids``.
        outputs: Names of the outputs.
        masks: Whether the program takes masks of presence, named ``audio_present``.

    Raises:
        ModuleNotFoundError: If a library of the ``export`` extra is missing.
        RunError: If ONNX lacks an operation of the model.
    """
    import onnx  # noqa: F401  (torch asks for it late, and for onnxscript in a message of its own)
    import onnxruntime
    import onnxscript  # noqa: F401

    names = list(named_tensors(inputs)) + ([f"{name}_present" for name in inputs] if masks else [])
    axes = [_batch_axes(inputs, "batch"), *([{name: {0: "batch"} for name in inputs}] if masks else [])]
    try:
        with _quiet():
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=list(outputs),
                dynamic_shapes=tuple(axes),
            )
    except Exception as error:
        raise RunError(f"The model cannot be written as ONNX: {_reason(error)} Leave it out: --formats pt2.") from error
    if onnx_program is None:
        raise RunError("torch wrote no ONNX program.")
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = {argument.name for argument in session.get_inputs()}

    def run(inputs: dict[str, Any], present: dict[str, Tensor] | None) -> dict[str, Tensor]:
        feed = named_tensors(inputs) | {f"{name}_present": mask for name, mask in (present or {}).items()}
        # An input that changes nothing, such as of a modality outside the ensemble, is no input of the file.
        values = session.run(list(outputs), {name: x.numpy() for name, x in feed.items() if name in expected})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

    return run


def _reason(error: Exception) -> str:
    """The first line of an error that says something, else its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def largest_difference(
    run: Runner, module: PredictionModule, example: Mapping[str, Any], *, masks: bool, tolerance: float, label: str
) -> float:
    """Largest difference of a program's logits from the model's own, over batches of several sizes.

    Args:
        run: Runs the program.
        module: The model, in evaluation mode, which runs eagerly.
        example: Inputs whose samples are taken, in another order.
        masks: Draw which samples have which modality.
        tolerance: Largest difference allowed, in units of the largest logit, or of 1 if that is smaller.
        label: The program's name in the message.

    Raises:
        RunError: If a difference is larger, or logits are not finite.
    """
    generator = torch.Generator().manual_seed(1)
    count = input_size("example", next(iter(example.values())))
    largest = 0.0
    for size in _SIZES:
        rows = torch.randint(count, (size,), generator=generator)
        inputs = {name: map_tensors(functools.partial(_take, rows), value) for name, value in example.items()}
        present = _masks(inputs, generator) if masks else None
        with torch.no_grad():
            expected, found = module(inputs, present), run(inputs, present)
        for name, logits in expected.items():
            difference = float((found[name] - logits).abs().max())
            scale = max(1.0, float(logits.abs().max()))
            if not difference <= tolerance * scale:  # NaN fails this too
                raise RunError(
                    f"{label} gives other logits than the model: '{name}' differs by {difference:.2g} where "
                    f"{tolerance * scale:.2g} is allowed, in a batch of {size}. Nothing was written."
                )
            largest = max(largest, difference)
    return largest


def _batch_axes(inputs: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    def axis(_: Tensor) -> Any:
        return {0: batch}

    return {name: map_tensors(axis, value) for name, value in inputs.items()}


def _take(rows: Tensor, x: Tensor) -> Tensor:
    return x[rows]


def _masks(inputs: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Masks of presence, drawn; a tenth of the time all samples lack a modality."""
    size = input_size("example", next(iter(inputs.values())))
    return {name: torch.rand(size, generator=generator) < math.sqrt(0.5) for name in inputs}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch tells its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
