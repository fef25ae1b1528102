"""Predictions of a run, to compare two runs sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bmlr.batch import Batch
from bmlr.methods import Prediction
from bmlr.runs.layout import PREDICTIONS
from bmlr.runs.storage import read_weights, write_weights
from bmlr.tasks import Task

#: Class of a modality that the sample lacks or the method does not predict by, and of a sample without target; of
#: labels and numbers it is NaN.
ABSENT = -1


class PredictionTable:
    """Predictions for all samples of a split: classes, probabilities of labels, or numbers.

    It is filled in batch by batch. Under distributed evaluation every process fills in its samples; the sum over the
    processes is the whole table.

    Args:
        modalities: Names of the modalities.
        samples: Number of samples of the split.
        device: Device of the table.
        task: What the targets are; None is classes.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        samples: int,
        device: torch.device | str = "cpu",
        *,
        task: Task | None = None,
    ) -> None:
        self.names, self.task = ("targets", "fused", *modalities), task
        shape: tuple[int, ...] = (len(self.names), samples)
        self._has_classes = task is None or task.name == "multiclass"
        if task is not None and not self._has_classes and task.num_outputs > 1:
            shape = (*shape, task.num_outputs)
        dtype = torch.int64 if self._has_classes else torch.float32
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Add a batch.

        Raises:
            ValueError: If the batch has no indices of its samples.
        """
        if batch.indices is None:
            raise ValueError("`batch.indices` should say which samples the batch holds. Found None.")
        self.values[0, batch.indices] = self._targets(batch.targets)
        absent_value = ABSENT if self._has_classes else math.nan
        for row, name in enumerate(self.names[1:], start=1):
            if name != "fused" and name not in prediction.unimodal_logits:  # a method of one modality
                self.values[row, batch.indices] = absent_value
                continue
            values = self._predictions(prediction.logits if name == "fused" else prediction.unimodal_logits[name])
            mask = None if name == "fused" else (batch.present or {}).get(name)
            if mask is not None:
                absent = ~mask.view(-1, *[1] * (values.ndim - 1))
                values = values.masked_fill(absent, absent_value)
            self.values[row, batch.indices] = values

    def _targets(self, targets: Tensor) -> Tensor:
        if self._has_classes:  # of a distribution, such as one of mixup, the most probable class
            classes = targets.argmax(1) if targets.ndim == 2 else targets.long()
            return classes.masked_fill(classes < 0, ABSENT)  # such as ignore_index
        return targets.float().reshape(len(targets), *self.values.shape[2:])

    def _predictions(self, logits: Tensor) -> Tensor:
        if self._has_classes:
            return logits.argmax(1)
        values = logits.sigmoid() if self.task is not None and self.task.name == "multilabel" else logits
        return values.float().reshape(len(logits), *self.values.shape[2:])

    def save(self, path: Path, values: Tensor | None = None) -> None:
        """Write the table, one array per name: integers, or of labels and numbers float32.

        Args:
            path: The file.
            values: Values in place of those of the table.
        """
        table = self.values if values is None else values
        dtype = torch.float32
        if self._has_classes:
            dtype = torch.int16 if int(table.max()) <= torch.iinfo(torch.int16).max else torch.int32
        write_weights(path, {name: row.to(dtype) for name, row in zip(self.names, table, strict=True)})


def read_predictions(directory: Path | str) -> dict[str, np.ndarray]:
    """Read the prediction for every test sample.

    They are those of the selected epoch.

    Args:
        directory: Directory of a finished run.

    Returns:
        Arrays by ``targets``, ``fused`` and modality. Class indices, shape (N,), -1 where a sample lacks the modality;
        or of several labels their probabilities, shape (N, L), and of numbers these, shape (N,) or (N, K), NaN there.

    Raises:
        FileNotFoundError: If the run has no predictions.
        ValueError: If the file is damaged.
    """
    path = Path(directory) / PREDICTIONS
    if not path.is_file():
        raise FileNotFoundError(f"There are no predictions in {directory}: {path.name} is missing.")
    arrays = {name: values.numpy() for name, values in read_weights(path).items()}
    if not {"targets", "fused"} <= set(arrays) or len({values.shape for values in arrays.values()}) != 1:
        raise ValueError(f"{path} should hold arrays targets and fused of one length. Found {sorted(arrays)}.")
    return arrays
