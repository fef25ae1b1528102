"""Diagnosis of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bmlr._checks import check_choice
from bmlr._random import preserved_random_state
from bmlr.diagnosis._alone import Ordered
from bmlr.diagnosis._diagnosis import Diagnosis
from bmlr.diagnosis._judge import Thresholds
from bmlr.diagnosis._linear import device_of
from bmlr.diagnosis._measuring import Sources, summarise
from bmlr.diagnosis._probe import probe_gap
from bmlr.diagnosis._readings import collect
from bmlr.diagnosis._removal import make_reader
from bmlr.monitor._gradients import GRADIENTS


def diagnose_run(
    run: Path | str,
    *,
    split: str = "val",
    weights: str = "best",
    probe: bool = False,
    thresholds: Thresholds | None = None,
    resamples: int = 1000,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Diagnose the model of a run on one split of its data.

    Gradients recorded in the run's directory (``gradients.csv``) are taken in. Nothing is written; see
    :meth:`Diagnosis.save`.

    Args:
        run: Directory of the run.
        split: train, val or test. The test split is for one final reading: it is read where you say so only.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        probe: Train every modality alone with the run's budget and compare, see :func:`probe_gap`. It takes about as
            long as the run, and is what tells an undertrained modality from one that says little.
        thresholds: What the verdict takes as much or little.
        resamples: Resamples of the bootstrap.
        device: Where to compute; None takes a GPU where there is one and the run was not kept off it.
        progress: Told in a sentence what is being done.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged.
        ValueError: If an argument does not fit.
    """
    from bmlr.training import load_run

    check_choice("split", split, ("train", "val", "test"))
    if probe and split == "train":
        raise ValueError("`probe` fits to the training split: give `split` = 'val' or 'test' with it. Found 'train'.")
    with preserved_random_state():
        config, model, method = load_run(run, weights=weights)
    place = torch.device(device) if device is not None else device_of(config)
    model.to(place), method.to(place)
    batches = Ordered(config, split)
    with preserved_random_state():
        readings = collect(make_reader(model, batches, method=method), batches)
    gaps = probe_gap(config, model, split=split, weights=weights, device=place, progress=progress) if probe else {}
    recorded = Path(run) / GRADIENTS
    name = type(method).__name__
    shown = {"train": "training split", "val": "validation split", "test": "test split"}[split]
    sources = Sources(
        f"{name} on {config.data.name}, {shown}, {weights} weights",
        method=name,
        probe=gaps,
        gradients=recorded if recorded.is_file() else None,
        can_probe=True,
    )
    return summarise(readings, sources, thresholds or Thresholds(), resamples=resamples, seed=config.seed)
