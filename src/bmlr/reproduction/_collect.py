"""Features, predictions and reshaped labels of a run, for figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmlr.data import SplitName
from bmlr.training import load
from bmlr.training.loader import BatchRequest, RequestLoader


@dataclasses.dataclass(frozen=True)
class CollectedRun:
    """Features, scores and labels of samples under a run's weights.

    The model is in evaluation mode.

    Attributes:
        classes: Names of the classes.
        indices: Positions of the samples in their split, shape (N,).
        targets: Class indices, shape (N,).
        features: Features of each modality, shape (N, d).
        scores: Logits of each modality, shape (N, C), as the method predicts.
        logits: Multimodal logits, shape (N, C).
        labels: The label each modality would be trained on with these weights, shape (N, C); None if the method has
            no labels of its own.
        dropped: Samples left out because they lack a modality.
    """

    classes: tuple[str, ...]
    indices: NDArray[np.int64]
    targets: NDArray[np.int64]
    features: dict[str, NDArray[np.float32]]
    scores: dict[str, NDArray[np.float32]]
    logits: NDArray[np.float32]
    labels: dict[str, NDArray[np.float32]] | None
    dropped: int


@torch.no_grad()
def collect_run(
    directory: Path | str,
    split: SplitName = "test",
    *,
    weights: str = "best",
    max_samples: int | None = None,
    seed: int = 0,
) -> CollectedRun:
    """Go through a split of a run's data with the run's weights.

    Labels are formed as in training but by the weights that were selected, with the transforms of evaluation.

    Args:
        directory: Directory of the run.
        split: train, val or test.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        max_samples: Of more samples so many are drawn by lot.
        seed: Seed of the lot.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged.
        ValueError: If no sample has all modalities.
    """
    run = load(directory, weights=weights, with_data=True)
    config, model, method = run.config, run.model, run.method
    positions = config.split(split)
    indices = np.arange(len(positions))
    if max_samples is not None and len(indices) > max_samples:
        indices = np.sort(np.random.default_rng(seed).choice(indices, max_samples, replace=False))
    size = config.batch_size
    requests = [BatchRequest(tuple(indices[start : start + size].tolist())) for start in range(0, len(indices), size)]
    dtype = next(model.parameters()).dtype
    rows: list[dict[str, Tensor]] = []
    for batch in RequestLoader(positions, requests, num_workers=config.trainer.num_workers):
        moved = batch.to("cpu", dtype=dtype)
        output = model(moved.inputs, moved.present)
        prediction = method.predict(output)
        has_all = torch.ones(len(moved), dtype=torch.bool)
        for mask in (moved.present or {}).values():
            has_all &= mask
        labels = method.labels(output, moved.targets) or {}
        collected = {"targets": moved.targets, "logits": prediction.logits}
        for kind, by_name in (
            ("features", output.features), ("scores", prediction.unimodal_logits), ("labels", labels),
        ):  # fmt: skip
            collected |= {f"{kind}.{name}": values for name, values in by_name.items()}
        rows.append({name: values[has_all].cpu() for name, values in collected.items()} | {"complete": has_all})
    complete = torch.cat([row["complete"] for row in rows]).numpy()
    if not complete.any():
        raise ValueError(f"No sample of split '{split}' of {directory} has all modalities.")
    joined = {name: torch.cat([row[name] for row in rows]).float().numpy() for name in rows[0] if name != "complete"}

    def by_modality(kind: str) -> dict[str, Any]:
        return {name.partition(".")[2]: values for name, values in joined.items() if name.startswith(f"{kind}.")}

    return CollectedRun(
        classes=tuple(config.data.classes),
        indices=indices[complete],
        targets=joined["targets"].astype(np.int64),
        features=by_modality("features"),
        scores=by_modality("scores"),
        logits=joined["logits"],
        labels=by_modality("labels") or None,
        dropped=int((~complete).sum()),
    )


def softness_of(collected: CollectedRun) -> NDArray[Any]:
    """Probability of the other classes in the labels, shape (N,).

    It is summed over the modalities.
    """
    rows = np.arange(len(collected.targets))
    return np.asarray(sum(1 - labels[rows, collected.targets] for labels in (collected.labels or {}).values()))


def most_reshaped_classes(collected: CollectedRun, count: int = 3) -> list[int]:
    """The classes whose labels were reshaped most.

    Args:
        collected: What :func:`collect_run` gave.
        count: Number of classes.

    Raises:
        ValueError: If the method has no labels of its own, or there are fewer classes with samples.
    """
    if collected.labels is None:
        raise ValueError("The run's method trains on one-hot labels: there are no reshaped ones.")
    softness = softness_of(collected)
    totals = {int(label): float(softness[collected.targets == label].mean()) for label in np.unique(collected.targets)}
    if len(totals) < count:
        raise ValueError(f"There should be at least {count} classes with samples. Found {len(totals)}.")
    return sorted(sorted(totals, key=lambda label: (-totals[label], label))[:count])


def confused_classes(collected: CollectedRun, count: int = 2) -> list[int]:
    """The pair of classes most often confused, and further ones."""
    number = len(collected.classes)
    confusion = np.zeros((number, number))
    for scores in collected.scores.values():
        np.add.at(confusion, (collected.targets, scores.argmax(axis=1)), 1)
    sizes = np.maximum(np.bincount(collected.targets, minlength=number), 1)
    shares = confusion / sizes[:, None]
    mutual = np.triu(shares + shares.T, k=1)
    present = np.bincount(collected.targets, minlength=number) > 0
    mutual[~present, :] = mutual[:, ~present] = -1
    order = np.argsort(-mutual, axis=None, kind="stable")
    pairs: list[int] = []
    for index in order:
        row, column = np.unravel_index(index, mutual.shape)
        if row < column and mutual[row, column] >= 0:
            pairs += [int(label) for label in (row, column) if int(label) not in pairs]
        if len(pairs) >= count:
            break
    return pairs[:count]
