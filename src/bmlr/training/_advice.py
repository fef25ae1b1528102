"""What a run will do, and what in its configuration cannot work well."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from bmlr._processors import count_processors
from bmlr.config import RunConfig
from bmlr.data import SPLITS
from bmlr.data.store import describe_size
from bmlr.tables import format_count, format_size

#: Path of a weight below which Adam has hardly left the initial weights: every step moves one by at most the rate.
_SHORTEST_PATH = 0.01
_FEW_SAMPLES = 30  # of a split, below which one is more than three per cent of it
_EPOCHS_IN_ROW = 5


def describe_run(config: RunConfig, *, parameters: int, steps: int, threads: int, device: str) -> str:
    """What a run will do, in a sentence.

    Args:
        config: Its configuration.
        parameters: Number of trained parameters.
        steps: Optimiser steps of an epoch.
        threads: Threads that compute.
        device: Name of the device.
    """
    data, epochs = config.model_data, config.trainer.epochs or 1
    sizes = ", ".join(f"{len(config.split(split))} {split}" for split in SPLITS)
    kept = 2 * 4 * parameters  # weights of the best and the last epoch
    epochs_text = f"{format_count(epochs, 'epoch')} of {format_count(steps, 'step')}"
    checkpoints = 2 * (1 if config.optimizer.name == "sgd" else 3) * 4 * parameters
    return (
        f"{type(config.method).__name__} on {data.name} ({sizes} samples): {parameters:,} parameters, {epochs_text}, "
        f"{format_count(threads, 'thread')} on {device}, {format_size(kept)} on disk and {format_size(checkpoints)} "
        "more while it trains."
    )


def advise(config: RunConfig, steps: int, threads: int) -> list[str]:
    """Sentences on what cannot work well in a configuration.

    Args:
        config: The configuration.
        steps: Optimiser steps of the whole run.
        threads: Threads that compute.
    """
    data, rate = config.model_data, config.optimizer.lr or 0.0
    batch_size, samples = config.trainer.batch_size or data.defaults.batch_size, len(config.split("train"))
    remarks = []
    if batch_size > samples:
        remarks.append(
            f"A batch of {batch_size} is more than the {samples} training samples, so that an epoch is one step: a "
            "smaller --trainer.batch_size makes more of them."
        )
    if config.optimizer.name != "sgd" and steps * rate < _SHORTEST_PATH:
        remarks.append(
            f"{format_count(steps, 'step')} at a learning rate of {rate:g} can move no weight by more than "
            f"{steps * rate:.2g}, too little to learn much: raise --optimizer.lr or --trainer.epochs, or lower "
            "--trainer.batch_size."
        )
    sizes = {split: len(config.split(split)) for split in ("val", "test")}
    remarks += filter(None, (describe_size(split, size) for split, size in sizes.items() if size < _FEW_SAMPLES))
    if threads > 1 and hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > count_processors() / 2:
        remarks.append(
            f"Other programs use this machine too (load {load:.0f}), and threads wait for each other then: "
            "--trainer.threads 1 may be many times as fast."
        )
    return remarks


def advise_on_labels(history: Sequence[Mapping[str, float]]) -> str | None:
    """Sentence on a method that reshapes nearly all labels or none, after several epochs in a row; None otherwise.

    Args:
        history: Numbers of the finished epochs.
    """
    rows = history[-_EPOCHS_IN_ROW:]
    shares = {
        key.removeprefix("train_reshaped_"): [row[key] for row in rows if key in row]
        for key in (rows[-1] if rows else {})
        if key.startswith("train_reshaped_")
    }
    if len(rows) < _EPOCHS_IN_ROW or not shares:
        return None
    for name, values in shares.items():
        if min(values) > 0.95:
            return (
                f"More than 95 % of the labels of {name} have been reshaped for {_EPOCHS_IN_ROW} epochs, so that it "
                "hardly learns from its own labels: raise --method.beta."
            )
    if max(map(max, shares.values())) < 0.02:
        return (
            f"Less than 2 % of the labels have been reshaped for {_EPOCHS_IN_ROW} epochs, so that the method trains "
            "on one-hot labels: lower --method.beta."
        )
    return None
