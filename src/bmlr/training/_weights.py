"""Weight files of a run."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunError
from bmlr.runs.storage import (
    DamagedFileError,
    read_weights,
    write_weights,
)


def save_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    """Write the tensors of model and method, prefixed by ``model.`` and ``method.``.

    What the method needs in training alone is left out.
    """
    tensors = {
        f"{prefix}.{name}": value
        for prefix, module in (("model", model), ("method", method))
        for name, value in _stored(module).items()
    }
    write_weights(path, tensors)


def read_run_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a weight file.

    Raises:
        RunError: If it is missing or damaged.
    """
    try:
        return read_weights(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the run has not finished an epoch.") from error
    except DamagedFileError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def load_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    """Load a weight file into model and method.

    Raises:
        RunError: If it is missing, damaged or of another model or method.
    """
    tensors = read_run_weights(path)
    for prefix, module in (("model", model), ("method", method)):
        state = {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}
        expected = set(_stored(module))
        if set(state) != expected:
            raise RunError(f"{path} does not hold this {prefix}: {sorted(set(state) ^ expected)[:4]} differ.")
        # Other state of a method may have another shape at the end of a training than in its best epoch.
        for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
            if name in state and state[name].shape != value.shape:
                raise RunError(
                    f"{path} is of another {prefix}: its '{name}' has shape {tuple(state[name].shape)}, and that of "
                    f"this {prefix} {tuple(value.shape)}."
                )
        try:
            module.load_state_dict(state, strict=False)  # names are checked, and what is not stored stays
        except RuntimeError as error:
            raise RunError(f"{path} does not fit this {prefix}: {error}") from error


def _stored(module: MultimodalClassifier | Method) -> dict[str, torch.Tensor]:
    """State of a module as weight files hold it."""
    left_out = module.training_state if isinstance(module, Method) else ()
    return {name: value for name, value in module.state_dict().items() if name.partition(".")[0] not in left_out}
