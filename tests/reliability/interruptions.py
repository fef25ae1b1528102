"""Runs that are stopped, and the comparison of a run with one that was not."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from bmlr import Batch, MultimodalClassifier
from bmlr.config import TrainerOptions
from bmlr.methods import Losses, Method

CPU = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", devices=1, progress=False)
#: Entries of a result that tell of time and place rather than of the training.
BESIDE_THE_POINT = {"seconds", "checksum", "files", "versions"}


class Stop(Exception):
    pass


def stopping(method: Method, at: int, how: signal.Signals | None = signal.SIGTERM) -> Method:
    """The method, sending its process a signal (or raising Stop, for None) in the given batch, counted from one."""
    compute_losses, seen = method.compute_losses, []

    def stop(model: MultimodalClassifier, batch: Batch) -> Losses:
        seen.append(batch)
        if len(seen) == at:
            if how is None:
                raise Stop
            os.kill(os.getpid(), how)
        return compute_losses(model, batch)

    vars(method)["compute_losses"] = stop
    return method


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, metrics and scores bit for bit; what was predicted too."""
    for name in ("best", "last", "predictions"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    table, other_table = (pd.read_csv(folder / "metrics.csv").drop(columns="seconds") for folder in (first, second))
    pd.testing.assert_frame_equal(table, other_table, check_exact=True)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    one, other = ({key: value for key, value in r.items() if key not in BESIDE_THE_POINT} for r in results)
    assert one == other
