"""Runs of one modality, and probes of their encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bmlr.diagnosis.probes import ProbeResult, TrainedAlone, compare_probes
from bmlr.encoders.features import pooled
from bmlr.model import Output
from bmlr.tables import format_count

if TYPE_CHECKING:
    from bmlr.config import RunConfig
    from bmlr.data import SplitName
    from bmlr.methods import Method
    from bmlr.model import MultimodalClassifier


def train_alone(config: RunConfig, modality: str, runs: Path) -> Path:
    """Train one modality alone with the options of a joint run.

    It is an ordinary run of :class:`bmlr.methods.Unimodal` with data, model, optimiser, trainer and seed of the joint
    run, the same that other methods start from. A finished one is reused, an interrupted one resumed.

    Args:
        config: Configuration of the joint run.
        modality: The modality.
        runs: Folder of the run.

    Returns:
        Directory of the run.
    """
    from bmlr.methods import Unimodal
    from bmlr.training import train

    method = Unimodal(modality)
    return train(
        config.data, method, config.model, config.optimizer, config.trainer, seed=config.seed, runs=runs, resume=True
    ).directory


def probe_run(
    config: RunConfig,
    model: MultimodalClassifier,
    runs: Path,
    *,
    split: SplitName,
    weights: str,
    device: torch.device,
    progress: Callable[[str], None] | None = None,
) -> dict[str, ProbeResult]:
    """Train every modality of a run alone and probe the encoders.

    Args:
        config: Configuration of the joint run.
        model: Its model.
        runs: Folder of the runs trained alone.
        split: Split the probes are scored on: val or test.
        weights: ``best`` or ``last``, of the runs trained alone.
        device: Device of the encoders.
        progress: Called with a sentence before each training.
    """
    from bmlr.training import split_batches

    alone = {}
    for modality in model.modalities:
        if progress is not None:
            progress(f"training {modality} alone for {format_count(config.trainer.epochs or 0, 'epoch')}, in {runs}")
        alone[modality] = _load_alone(train_alone(config, modality, runs), modality, weights, device)
    return compare_probes(
        {modality: _Encoder(model, modality) for modality in model.modalities},
        alone,
        split_batches(config, "train"),
        split_batches(config, split),
        num_classes=model.task.num_outputs,
    )


def _load_alone(run: Path, modality: str, weights: str, device: torch.device) -> TrainedAlone:
    """Load a run of one modality, with its untrained encoder."""
    from bmlr.config import build_model
    from bmlr.training import load

    loaded = load(run, weights=weights)
    config, model, method = loaded.config, loaded.model, loaded.method
    torch.manual_seed(config.seed)
    untrained = build_model(config.model_data, config.model).to(next(model.parameters()).dtype)
    model.to(device), method.to(device), untrained.to(device)
    return TrainedAlone(
        _Encoder(model, modality), _UnimodalClassifier(model, method, modality), _Encoder(untrained, modality)
    )


class _Encoder(nn.Module):
    """Inputs of one modality to its features, shape (B, d); the encoder of a wrapped model is no module of its own."""

    def __init__(self, model: MultimodalClassifier, modality: str) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, x: Tensor) -> Tensor:
        """Features, those of a sequence averaged."""
        return pooled(self.model.encode(self.modality, x))


class _UnimodalClassifier(nn.Module):
    """Inputs of one modality to the logits of a model trained alone."""

    def __init__(self, model: MultimodalClassifier, method: Method, modality: str) -> None:
        super().__init__()
        self.model, self.method, self.modality = model, method, modality

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, C)."""
        features = {self.modality: self.model.encode(self.modality, x)}
        return self.method.predict(Output(features, self.model.fusion, self.model.task)).logits
