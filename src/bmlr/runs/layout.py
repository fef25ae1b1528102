"""Names of the files of a run."""

from __future__ import annotations

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"
PREDICTIONS = "predictions.safetensors"
#: What new files need to be read as the training data was, and the checksum of that data's content.
DATA, DATA_ARRAYS = "data.json", "data.safetensors"
#: The checkpoint before the last; both are kept until the run is finished.
PREVIOUS = "previous.ckpt"
#: Losses and gradients that were not finite.
NONFINITE = "nonfinite.json"
TENSORBOARD = "tensorboard"
FAILURE, LOG, LOCK = "failed.json", "log.txt", ".lock"
#: Process and machine that hold the lock.
HOLDER = ".holder.json"
#: Folder of the run's diagnosis, if it has one.
DIAGNOSIS = "diagnosis"
#: Folder of its scores under missing and noisy modalities, if it has them.
ROBUSTNESS = "robustness"
#: Folder of the run's exported model.
EXPORT = "export"
