"""Validation, test and prediction under a Lightning trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from bmlr.batch import Batch, as_batch
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.training._scores import Score, ScoreMetric, flatten_score


class NoLoaders(CombinedLoader):
    """No loader at all, so that the trainer skips validation; it would warn of an empty one."""

    def __init__(self) -> None:
        super().__init__([], "sequential")

    @property
    def flattened(self) -> list[Any]:
        """None of them."""
        return []

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        """Nothing to set."""


class EvaluatedModule(lightning.LightningModule):
    """Model and method, scored by the predictions of the method.

    Args:
        model: The model.
        method: The method, set up for it.

    Attributes:
        val_score: Score of the last validation.
        test_score: Score of the last test.
    """

    def __init__(self, model: MultimodalClassifier, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method
        self.val_score: Score | None = None
        self.test_score: Score | None = None
        self._metric = ScoreMetric(model.modalities, model.task)
        #: Metric by which epochs are compared; ``None`` is the task's primary.
        self.monitor: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; at once where Lightning notes a hook's name, as it does seventy times per step."""
        if name == "_current_fx_name":
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; Lightning would copy it entry by entry, looking for tensors."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=device.type == "cuda")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @property
    def monitored(self) -> str:
        """Metric by which epochs are compared."""
        return self.monitor or self.model.task.primary

    def forward(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> Prediction:
        """Predictions of the method.

        Args:
            inputs: The input of each modality, first dimension B.
            present: Presence of each modality, a boolean mask of shape (B,) per name.
        """
        return self.method.predict(self.model(inputs, present))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score a batch."""
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Compute the score and log it; within training only for the progress bar and callbacks."""
        self.val_score = self._finish_score()
        if self.trainer.state.fn == "fit":
            self.log(f"val_{self.monitored}", self.val_score.metrics[self.monitored], prog_bar=True, logger=False)
        else:
            self._log_score("val", self.val_score)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score a batch."""
        self._score(batch)

    def on_test_epoch_end(self) -> None:
        """Compute the score and log it."""
        self.test_score = self._finish_score()
        self._log_score("test", self.test_score)

    def predict_step(self, batch: Any, batch_idx: int) -> Prediction:
        """Predictions for a batch, or for inputs by modality alone."""
        if isinstance(batch, Mapping):
            prediction: Prediction = self(batch)
        else:
            batch = as_batch(batch)
            prediction = self(batch.inputs, batch.present)
        return prediction

    def _score(self, batch: Any) -> None:
        batch = as_batch(batch)
        self._metric.update(self(batch.inputs, batch.present), batch)

    def _finish_score(self) -> Score:
        score = self._metric.compute()
        self._metric.reset()
        return score

    def _log_score(self, prefix: str, score: Score) -> None:
        self.log_dict(dict(flatten_score(prefix, score)))
