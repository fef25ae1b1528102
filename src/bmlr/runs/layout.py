"""Names of the files of a run."""

from __future__ import annotations

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"
PREDICTIONS = "predictions.safetensors"
#: The checkpoint before the last, kept while the run goes on.
PREVIOUS = "previous.ckpt"


#: What is known of losses and gradients that were not finite.
NONFINITE = "nonfinite.json"


FAILURE, LOG = "failed.json", "log.txt"
