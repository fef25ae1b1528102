"""Predicted classes of a run, to compare two runs sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bmlr.batch import Batch
from bmlr.methods import Prediction
from bmlr.runs.layout import PREDICTIONS
from bmlr.runs.storage import read_weights, write_weights

#: Class of a modality that the sample lacks.
ABSENT = -1


class PredictionTable:
    """Predicted classes of all samples of a split.

    It is filled in batch by batch. Under distributed evaluation every process fills in its samples; the sum over the
    processes is the whole table.

    Args:
        modalities: Names of the modalities.
        samples: Number of samples of the split.
        device: Device of the table.
    """

    def __init__(self, modalities: Sequence[str], samples: int, device: torch.device | str = "cpu") -> None:
        self.names = ("targets", "fused", *modalities)
        self.values = torch.zeros(len(self.names), samples, dtype=torch.int64, device=device)

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Add a batch.

        Raises:
            ValueError: If the batch has no indices of its samples.
        """
        if batch.indices is None:
            raise ValueError("`batch.indices` should say which samples the batch holds. Found None.")
        self.values[0, batch.indices] = batch.targets.long()
        for row, name in enumerate(self.names[1:], start=1):
            logits = prediction.logits if name == "fused" else prediction.unimodal_logits[name]
            classes = logits.argmax(1)
            mask = None if name == "fused" else (batch.present or {}).get(name)
            self.values[row, batch.indices] = classes if mask is None else classes.where(mask, ABSENT)

    def save(self, path: Path, values: Tensor | None = None) -> None:
        """Write the table, one integer array per name.

        Args:
            path: The file.
            values: Values in place of those of the table.
        """
        table = self.values if values is None else values
        dtype = torch.int16 if int(table.max()) <= torch.iinfo(torch.int16).max else torch.int32
        write_weights(path, {name: row.to(dtype) for name, row in zip(self.names, table, strict=True)})


def read_predictions(directory: Path | str) -> dict[str, np.ndarray]:
    """Read the predicted class of every test sample.

    They are those of the selected epoch.

    Args:
        directory: Directory of a finished run.

    Returns:
        Class indices by ``targets``, ``fused`` and modality, shape (N,); -1 where a sample lacks the modality.

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
