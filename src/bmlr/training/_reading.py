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
from bmlr.training._scores import Score, evaluate
from bmlr.training._weights import load_weights
from bmlr.training.loader import RequestLoader, ordered_requests


def load_run(directory: Path | str, *, weights: str = "best") -> tuple[RunConfig, MultimodalClassifier, Method]:
    """Load configuration, model and method of a run.

    They are in evaluation mode on the CPU; the data is prepared.

    Args:
        directory: Directory of the run.
        weights: ``best`` (the epoch selected on validation) or ``last``.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing, damaged or of another model.
    """
    directory = Path(directory)
    config = read_config(directory / CONFIG)
    config.data.prepare()
    model = build_model(config.data, config.model)
    config.method.setup(model)
    if config.trainer.precision == "64-true":
        model, _ = model.double(), config.method.double()
    load_weights(directory / f"{weights}.safetensors", model, config.method)
    return config, model.eval(), config.method.eval()


def evaluate_run(directory: Path | str, *, split: SplitName = "test", weights: str = "best") -> Score:
    """Score a run's weights on one split of its data.

    Args:
        directory: Directory of the run.
        split: train, val or test.
        weights: ``best`` or ``last``.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged.
    """
    config, model, method = load_run(directory, weights=weights)
    return evaluate(model, method, split_batches(config, split))


@torch.no_grad()
def predict_run(
    directory: Path | str, files: Mapping[str, Path], *, weights: str = "best"
) -> dict[str, dict[str, float]]:
    """Predict the class of one new sample, fused and by each modality.

    Args:
        directory: Directory of the run.
        files: A file per modality of the model; it may be left out where samples of the data set lack the modality.
        weights: ``best`` or ``last``.

    Returns:
        Probability of each class name, keyed ``fused`` and by modality given.

    Raises:
        FileNotFoundError: If the run or a file is missing.
        ValueError: If a file cannot be read as its modality.
    """
    config, model, method = load_run(directory, weights=weights)
    dtype = next(model.parameters()).dtype
    inputs = {name: x.to(dtype) for name, x in config.model_data.load_files(files).items()}
    present = {
        name: torch.zeros(1, dtype=torch.bool)
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
