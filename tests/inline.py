"""Runs of a grid in this process, and made-up records of runs."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from bmlr.benchmark._worker import _run
from bmlr.config import ModelOptions, TrainerOptions
from bmlr.runs import PredictionTable, RunRecord
from bmlr.runs.layout import PREDICTIONS

CPU = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False)
SMALL = ModelOptions(width=2)


class InlineEngine:
    """An engine that makes runs in this process, which saves their start."""

    def __init__(self):
        self.made = []

    def execute(self, tasks):
        for task in tasks:
            self.made.append(task.directory.name)
            with contextlib.chdir(task.folder):
                yield task, _run(task.directory, task.modules)


def quiet(_):
    pass


def finished(folder, label, seed, hits, targets=None, **changes):
    """Record of a finished run with right predictions at ``hits``."""
    hits = np.asarray(hits, dtype=bool)
    targets = np.zeros(len(hits), dtype=int) if targets is None else np.asarray(targets)
    directory = Path(folder) / f"{label}-{seed}".replace(":", "-")
    directory.mkdir(parents=True, exist_ok=True)
    table = PredictionTable(["audio", "image"], len(hits))
    table.values[:] = torch.from_numpy(np.stack([targets, *[np.where(hits, targets, targets + 1)] * 3]))
    table.save(directory / PREDICTIONS)
    accuracy = float(hits.mean())
    result = {
        "data": "toy", "protocol": "clean", "method": label.partition(":")[0], "seed": seed,
        "test": {"accuracy": accuracy, "unimodal_accuracy": {"audio": accuracy, "image": accuracy / 2},
                 "ratio": {"audio/image": 2.0 if accuracy else None}, "samples": len(hits)},
        "validation": {"accuracy": accuracy}, "best_epoch": 0, "epochs": 3, "data_passes": 3.0,
        "metric": "accuracy", "monitor": "accuracy", "constant_score": 0.35, "seconds": 60.0,
        "samples": {"train": 9, "val": 9, "test": len(hits)}, "digest": "d",
    } | changes  # fmt: skip
    config = {
        "data": {"class_path": "toy.Toy", "init_args": {"samples": 40, "protocol": "clean"}},
        "method": {"class_path": f"bmlr.methods.{label.partition(':')[0]}", "init_args": {}},
        "model": {"fusion": "concat"}, "optimizer": {"lr": 0.01},
        "trainer": {"epochs": result["epochs"], "progress": True}, "seed": seed,
    }  # fmt: skip
    return RunRecord(label, directory, config, json.loads(json.dumps(result)))


def failed(folder, label, seed):
    """Record of a failed run."""
    record = finished(folder, label, seed, [True])
    return RunRecord(label, record.directory, record.config, None, {"error": "ValueError: broken", "traceback": ""})


def process_exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
