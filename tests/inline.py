"""Runs of a grid in this process, and made-up records of runs."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmlr.benchmark._server import Task
from bmlr.benchmark._worker import _run
from bmlr.config import ModelOptions, TrainerOptions
from bmlr.runs import PredictionTable, RunRecord
from bmlr.runs.layout import PREDICTIONS

CPU = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False)
SMALL = ModelOptions(width=2)


class InlineEngine:
    """An engine that makes runs in this process, which saves their start."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int] | None]:
        for task in tasks:
            self.made.append(task.directory.name)
            with contextlib.chdir(task.folder):
                yield task, _run(task.directory, task.modules)


def quiet(_: object) -> None:
    pass


def finished(
    folder: str | Path, label: str, seed: int, hits: Sequence[Any], targets: Sequence[int] | None = None, **changes: Any
) -> RunRecord:
    """Record of a finished run with right predictions at ``hits``."""
    right = np.asarray(hits, dtype=bool)
    truth = np.zeros(len(right), dtype=int) if targets is None else np.asarray(targets)
    directory = Path(folder) / f"{label}-{seed}".replace(":", "-")
    directory.mkdir(parents=True, exist_ok=True)
    table = PredictionTable(["audio", "image"], len(hits))
    table.values[:] = torch.from_numpy(np.stack([truth, *[np.where(right, truth, truth + 1)] * 3]))
    table.save(directory / PREDICTIONS)
    accuracy = float(right.mean())
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


def failed(folder: str | Path, label: str, seed: int) -> RunRecord:
    """Record of a failed run."""
    record = finished(folder, label, seed, [True])
    return RunRecord(label, record.directory, record.config, None, {"error": "ValueError: broken", "traceback": ""})


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
