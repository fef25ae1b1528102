"""Tasks: what targets mean, and with them loss, confidence, prediction and metrics."""

from __future__ import annotations

from bmlr.tasks._base import Classification, Task, joint_mask
from bmlr.tasks._forms import MetricForm, metric_form, prediction_label
from bmlr.tasks._multiclass import Multiclass, as_task
from bmlr.tasks._multilabel import MultiLabel
from bmlr.tasks._regression import Regression, Sentiment

__all__ = [
    "Classification",
    "MetricForm",
    "MultiLabel",
    "Multiclass",
    "Regression",
    "Sentiment",
    "Task",
    "as_task",
    "joint_mask",
    "metric_form",
    "prediction_label",
]
