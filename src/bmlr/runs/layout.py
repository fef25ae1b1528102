"""Names of the files of a run."""

from __future__ import annotations

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"
PREDICTIONS = "predictions.safetensors"
#: The checkpoint before the last, kept until the run is finished.
PREVIOUS = "previous.ckpt"
#: Losses and gradients that were not finite.
NONFINITE = "nonfinite.json"
FAILURE, LOG, LOCK = "failed.json", "log.txt", ".lock"
