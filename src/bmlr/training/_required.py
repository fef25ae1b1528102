"""Runs that a run starts from."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from bmlr._random import preserved_random_state
from bmlr.config import GivenModel, RunConfig
from bmlr.methods import Method, StartingMethod
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunError, RunInterruptedError
from bmlr.runs.layout import RESULT
from bmlr.training._errors import first_line
from bmlr.training._processes import is_first_process
from bmlr.training._weights import load_weights


def start_from_required_runs(
    config: RunConfig, directory: Path, model: MultimodalClassifier, train: Callable[..., object]
) -> None:
    """Make the runs that the method of a run starts from, beside its directory, and hand them over.

    Finished ones are reused and interrupted ones resumed. The random state is left as it was: a run does not depend on
    whether others were made before it.

    Args:
        config: Configuration of the run, whose method is set up for the model.
        directory: Its directory.
        model: Its model, with its first weights.
        train: :func:`bmlr.training.train`.

    Raises:
        RunError: If one of them fails; the message names it.
        RunInterruptedError: If a signal stopped one.
    """
    method, trained = config.method, {}
    if not isinstance(method, StartingMethod):
        return
    with preserved_random_state():
        for name, required in config.required.items():
            folder = directory.parent / required.name
            if config.trainer.progress and is_first_process() and not (folder / RESULT).is_file():
                print(f"{type(method).__name__} starts from {required.method}, in {folder}.", file=sys.stderr)
            try:
                _make(required, folder, model, train)
                trained[name] = load_required(required, folder, model)
            except RunInterruptedError:
                raise
            except Exception as error:
                raise RunError(failure_text(config.method, required.method, folder, first_line(error))) from error
        if trained:
            method.start_from(trained, model)


def failure_text(method: Method, required: Method, folder: Path, reason: str) -> str:
    """Why a run cannot be made whose required run failed."""
    return f"{type(method).__name__} starts from the run of {required} in {folder}, which failed: {reason}"


def _make(config: RunConfig, folder: Path, model: MultimodalClassifier, train: Callable[..., object]) -> None:
    given = config.model
    if isinstance(given, GivenModel):  # it is trained in place
        given = dataclasses.replace(given, network=copy.deepcopy(model))
    train(
        config.data, config.method, given, config.optimizer, config.trainer, seed=config.seed, run=folder, resume=True
    )


def load_required(config: RunConfig, folder: Path, model: MultimodalClassifier) -> tuple[MultimodalClassifier, Method]:
    """Model and method of a finished run, with their best weights.

    Args:
        config: Configuration of the run.
        folder: Its directory.
        model: A model of the same layers, which stays as it is.
    """
    network, method = copy.deepcopy(model), copy.deepcopy(config.method)
    method.setup(network)
    method.to(next(network.parameters()))
    load_weights(folder / "best.safetensors", network, method)
    return network.eval(), method.eval()


def start_untrained(config: RunConfig, model: MultimodalClassifier) -> None:
    """Start a method from runs that are not trained, to measure what its steps cost."""
    if not isinstance(config.method, StartingMethod):
        return
    trained: dict[str, tuple[MultimodalClassifier, Method]] = {}
    for name, required in config.required.items():
        network = copy.deepcopy(model)
        required.method.setup(network)
        trained[name] = network, required.method
    if trained:
        config.method.start_from(trained, model)
