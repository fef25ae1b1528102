"""Load, evaluate and predict with a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bmlr.batch import Batch, tensors_of
from bmlr.config import GivenModel, RunConfig, build_model, read_config
from bmlr.data import MultimodalData, SplitName
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.runs.layout import CONFIG
from bmlr.training._data_files import open_data, restore_data
from bmlr.training._scores import Score, evaluate
from bmlr.training._weights import load_weights
from bmlr.training.loader import RequestLoader, ordered_requests


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """Configuration, model and method of a run, ready to predict.

    All are in evaluation mode. One thread at a time may predict.

    Attributes:
        config: Its configuration.
        model: Its model.
        method: Its method, which makes the predictions.
    """

    config: RunConfig
    model: MultimodalClassifier
    method: Method

    def predict(self, files: Mapping[str, Path | str]) -> dict[str, dict[str, float]]:
        """Predict one new sample, multimodal and by each modality.

        Args:
            files: A file per modality; see :meth:`read`.

        Returns:
            Probability of each class or label by its name, or the predicted number as ``target``; keyed ``fused`` and
            by modality given.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality.
        """
        inputs, present = self.read(files)
        with torch.no_grad():
            prediction = self.method.predict(self.model(inputs, present or None))
        unimodal = {name: values for name, values in prediction.unimodal_logits.items() if name not in present}
        logits = {"fused": prediction.logits, **unimodal}
        return {name: self._describe(values[0].double()) for name, values in logits.items()}

    def _describe(self, logits: Tensor) -> dict[str, float]:
        """Probabilities of a sample by class or label, or its number; logits of shape (num_outputs,)."""
        task = self.config.data.task
        if task.name == "regression":
            numbers = task.predict(logits[None]).flatten().tolist()
            names = [f"target {number}" for number in range(1, len(numbers) + 1)] if len(numbers) > 1 else ["target"]
            return dict(zip(names, numbers, strict=True))
        values = logits.sigmoid() if task.name == "multilabel" else logits.softmax(0)
        return dict(zip(self.config.data.classes, values.tolist(), strict=True))

    def read(self, files: Mapping[str, Path | str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read the files of one new sample as those of training were.

        Args:
            files: A file per modality of the model, or a text itself as a string. It may be left out where samples of
                the data set lack the modality; a video gives its audio too.

        Returns:
            Inputs by modality, shape (1, …), on the model's device and in its type; and for each modality without a
            file a mask of presence, [False].

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality.
        """
        parameter = next(self.model.parameters())
        forms = self.config.data.modalities
        texts = {name for name in files if name in forms and forms[name].kind == "text"}
        given = {name: Path(x) if isinstance(x, str) and name not in texts else x for name, x in files.items()}
        loaded = self.config.model_data.load_files(given)
        inputs = Batch(dict(loaded), torch.zeros(1)).to(parameter.device, dtype=parameter.dtype).inputs
        present = {
            name: torch.zeros(1, dtype=torch.bool, device=parameter.device)
            for name in self.model.modalities
            if name not in files and not self._is_given(name, inputs[name])  # a video file may also give the audio
        }
        return inputs, present

    def _is_given(self, name: str, inputs: Any) -> bool:
        """Whether an input is more than padding, which stands for a file that was left out."""
        padding = self.config.data.modalities[name].padding
        return any(bool((x != padding).any()) for x in tensors_of(inputs))


def load(
    directory: Path | str,
    *,
    weights: str = "best",
    root: Path | str | None = None,
    with_data: bool = False,
    model: MultimodalClassifier | None = None,
    data: MultimodalData | None = None,
) -> LoadedRun:
    """Load a run, on the CPU.

    The training data is not needed, unless it is asked for.

    Args:
        directory: Directory of the run.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        root: Folder of the data, if it was moved.
        with_data: Open the data too, for :func:`split_batches`, and check that it is the same.
        model: The model, of a run that was given a finished one; it gets the weights of the run.
        data: The data, of a run whose data is in no files: of :func:`bmlr.data.from_datasets`.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the model is another, or is missing.
        RunError: If its weights are missing, damaged or of another model, or its data is missing or other data.
    """
    directory = Path(directory).expanduser()
    config = read_config(directory / CONFIG, root=root)
    if isinstance(config.model, GivenModel):
        config = dataclasses.replace(config, model=config.model.take(model, str(directory)))
    elif model is not None:
        raise ValueError(f"`model` should be left out: {directory} says by itself how its model is made.")
    if data is not None:
        config = dataclasses.replace(config, data=data)
    (open_data if with_data else restore_data)(directory, config)
    model = build_model(config.model_data, config.model, weights=False)
    config.method.setup(model)
    if config.trainer.precision == "64-true":
        model, _ = model.double(), config.method.double()
    load_weights(directory / f"{weights}.safetensors", model, config.method)
    return LoadedRun(config, model.eval(), config.method.eval())


def evaluate_run(
    directory: Path | str,
    *,
    split: SplitName = "test",
    weights: str = "best",
    root: Path | str | None = None,
    model: MultimodalClassifier | None = None,
    data: MultimodalData | None = None,
) -> Score:
    """Score a run's weights on one split of its data.

    Args:
        directory: Directory of the run.
        split: train, val or test.
        weights: ``best`` or ``last``.
        root: Folder of the data, if it was moved.
        model: The model, of a run that was given a finished one.
        data: The data, of a run whose data is in no files.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged, or its data is missing or other data.
    """
    run = load(directory, weights=weights, root=root, with_data=True, model=model, data=data)
    return evaluate(run.model, run.method, split_batches(run.config, split))


def split_batches(config: RunConfig, split: SplitName, *, rank: int = 0, world_size: int = 1) -> RequestLoader:
    """Batches of a split in order, without random transforms.

    Args:
        config: Configuration of the run.
        split: train, val or test.
        rank: Rank of this process, which gets every ``world_size``-th sample.
        world_size: Number of processes.
    """
    samples = config.split(split)
    requests = ordered_requests(len(samples), config.batch_size, rank=rank, world_size=world_size)
    return RequestLoader(samples, requests, num_workers=config.trainer.num_workers)
