"""Load, evaluate and predict with a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from bmlr.config import RunConfig, build_model, read_config
from bmlr.data import SplitName
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.runs.layout import CONFIG
from bmlr.training._data_files import open_data, restore_data
from bmlr.training._scores import Score, evaluate
from bmlr.training._weights import load_weights
from bmlr.training.loader import RequestLoader, ordered_requests


def load_run(
    directory: Path | str, *, weights: str = "best", root: Path | str | None = None, with_data: bool = False
) -> tuple[RunConfig, MultimodalClassifier, Method]:
    """Load configuration, model and method of a run.

    They are in evaluation mode on the CPU. The training data is not needed, unless it is asked for.

    Args:
        directory: Directory of the run.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        root: Folder of the data, if it was moved.
        with_data: Open the data too, for :func:`split_batches`, and check that it is the same.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing, damaged or of another model, or its data is missing or other data.
    """
    directory = Path(directory).expanduser()
    config = read_config(directory / CONFIG, root=root)
    (open_data if with_data else restore_data)(directory, config)
    model = build_model(config.data, config.model)
    config.method.setup(model)
    if config.trainer.precision == "64-true":
        model, _ = model.double(), config.method.double()
    load_weights(directory / f"{weights}.safetensors", model, config.method)
    return config, model.eval(), config.method.eval()


def evaluate_run(
    directory: Path | str, *, split: SplitName = "test", weights: str = "best", root: Path | str | None = None
) -> Score:
    """Score a run's weights on one split of its data.

    Args:
        directory: Directory of the run.
        split: train, val or test.
        weights: ``best`` or ``last``.
        root: Folder of the data, if it was moved.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged, or its data is missing or other data.
    """
    config, model, method = load_run(directory, weights=weights, root=root, with_data=True)
    return evaluate(model, method, split_batches(config, split))


def predict_run(
    directory: Path | str, files: Mapping[str, Path], *, weights: str = "best"
) -> dict[str, dict[str, float]]:
    """Predict the class of one new sample with a run.

    For many samples load the run once, and call :func:`predict_files`.

    Args:
        directory: Directory of the run, which is all that is needed of it.
        files: A file per modality of the model; see :func:`predict_files`.
        weights: ``best`` or ``last``.

    Returns:
        Probability of each class name, keyed ``fused`` and by modality given.

    Raises:
        FileNotFoundError: If the run or a file is missing.
        ValueError: If a file cannot be read as its modality.
    """
    return predict_files(*load_run(directory, weights=weights), files)


@torch.no_grad()
def predict_files(
    config: RunConfig, model: MultimodalClassifier, method: Method, files: Mapping[str, Path]
) -> dict[str, dict[str, float]]:
    """Predict the class of one new sample, fused and by each modality.

    Args:
        config: Configuration of the run, from :func:`load_run`.
        model: Its model.
        method: Its method.
        files: A file per modality of the model. It may be left out where samples of the data set lack the modality; a
            video gives its audio too.

    Returns:
        Probability of each class name, keyed ``fused`` and by modality given.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as its modality.
    """
    parameter = next(model.parameters())
    inputs = {name: x.to(parameter) for name, x in config.model_data.load_files(files).items()}
    present = {
        name: torch.zeros(1, dtype=torch.bool, device=parameter.device)
        for name in model.modalities
        if name not in files and not bool(inputs[name].any())  # a video file may also give the audio
    }
    prediction = method.predict(model(inputs, present or None))
    unimodal = {name: values for name, values in prediction.unimodal_logits.items() if name not in present}
    logits = {"fused": prediction.logits, **unimodal}
    return {
        name: dict(zip(config.data.classes, values[0].double().softmax(0).tolist(), strict=True))
        for name, values in logits.items()
    }


def split_batches(config: RunConfig, split: SplitName, *, rank: int = 0, world_size: int = 1) -> RequestLoader:
    """Batches of a split in order, without random transforms.

    Args:
        config: Configuration of the run.
        split: train, val or test.
        rank: Rank of this process, which gets every ``world_size``-th sample.
        world_size: Number of processes.
    """
    samples = config.model_data.split(split)
    size = config.trainer.batch_size or config.data.defaults.batch_size
    requests = ordered_requests(len(samples), size, rank=rank, world_size=world_size)
    return RequestLoader(samples, requests, num_workers=config.trainer.num_workers)
