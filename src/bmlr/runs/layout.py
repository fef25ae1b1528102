"""Names of the files of a run."""

from __future__ import annotations

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"
PREDICTIONS = "predictions.safetensors"
#: The checkpoint before the last and that of the last epoch's end, kept while the run goes on where they are needed.
PREVIOUS, EPOCH = "previous.ckpt", "epoch.ckpt"


#: What is known of losses and gradients that were not finite.
NONFINITE = "nonfinite.json"


FAILURE, LOG = "failed.json", "log.txt"
