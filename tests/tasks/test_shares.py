"""Scores that are shares stay within [0, 1]."""

import pytest
import torch
from torch.nn.functional import one_hot as one_hot_of

from bmlr.tasks._metrics import multiclass_metrics, multilabel_metrics


@pytest.mark.parametrize("classes", range(2, 40))
def test_a_perfect_macro_f1_is_one(classes):
    """The mean of ones is 1.0000001 for ten classes, say."""
    targets = torch.arange(16 * classes) % classes
    one_hot = one_hot_of(targets, classes).float()
    for metrics, expected in ((multiclass_metrics(classes, None), targets), (multilabel_metrics(classes), one_hot)):
        metrics.update(20 * one_hot - 10, expected)
        score = float(metrics.compute()["macro_f1"])
        assert 1 - 1e-6 < score <= 1
