"""Diagnosis of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bmlr._checks import check_choice
from bmlr._random import preserved_random_state
from bmlr.diagnosis._alone import probe_run
from bmlr.diagnosis._blind import BlindModalityTest, blind_modality_test
from bmlr.diagnosis._diagnose import Background, summarise
from bmlr.diagnosis._diagnosis import Diagnosis
from bmlr.diagnosis._judge import Thresholds
from bmlr.diagnosis._predictions import collect_predictions
from bmlr.diagnosis._removal import make_predictor
from bmlr.diagnosis._replacements import RemovalOptions
from bmlr.methods import Unimodal
from bmlr.monitor import GRADIENTS
from bmlr.tasks import Multiclass

if TYPE_CHECKING:
    from bmlr.config import RunConfig
    from bmlr.data import SplitName

_SPLITS = {"train": "training split", "val": "validation split", "test": "test split"}


def diagnose_run(  # noqa: PLR0913  (one call says all of a run and its data)
    run: Path | str,
    *,
    split: SplitName = "val",
    weights: str = "best",
    removal: RemovalOptions | None = None,
    probe: bool = False,
    alone: Path | str | None = None,
    thresholds: Thresholds | None = None,
    device: torch.device | str | None = None,
    root: Path | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis | BlindModalityTest:
    """Diagnose the model of a run on one split of its data.

    A diagnosis needs classes. A run of another task gets the blind-modality test of its loss, see
    :func:`bmlr.diagnosis.blind_modality_test`.

    Gradients recorded in the run's directory (``gradients.csv``) are included. The diagnosis is not written; see
    :func:`bmlr.diagnosis.write_diagnosis`.

    Args:
        run: Directory of the run.
        split: train, val or test. Keep the test split for one final reading.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        removal: Removal of modalities; by default features of zero.
        probe: Train every modality alone with the run's budget and compare encoders by linear probes. It takes about
            as long as the run, and tells an undertrained modality from an uninformative one. Runs trained alone
            before are reused, interrupted ones resumed.
        alone: Folder of the runs trained alone, which several diagnoses and methods may share; by default the one that
            holds the run's directory.
        thresholds: Limits of the verdict.
        device: Device of predictions and probes; None takes a GPU unless the run was kept off it.
        root: Folder of the data, if it was moved.
        progress: Called with a sentence on each longer step.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged, or its data is missing or other data.
        ValueError: If an argument does not fit.
    """
    from bmlr.runs import read_run
    from bmlr.training import load, split_batches

    check_choice("split", split, ("train", "val", "test"))
    if probe and split == "train":
        raise ValueError("`probe` fits to the training split: give `split` = 'val' or 'test' with it. Found 'train'.")
    with preserved_random_state():
        loaded = load(run, weights=weights, root=root, with_data=True)
        config, model, method = loaded.config, loaded.model, loaded.method
        single = method.modality if isinstance(method, Unimodal) else model.modalities[0]
        if len(model.modalities) < 2 or isinstance(method, Unimodal):
            raise ValueError(
                f"{run} was trained on {single} alone, so that there is no balance to diagnose. Diagnose "
                f"a run of several modalities, with --probe to compare it with such runs; bmlr evaluate {run} scores "
                "this one."
            )
        target = run_device(config) if device is None else torch.device(device)
        model.to(target), method.to(target)
        batches = split_batches(config, split)
        name, epoch = type(method).__name__, ""
        if (result := read_run(Path(run)).result) is not None:
            number = result["best_epoch"] + 1 if weights == "best" else result["epochs"]
            epoch = f" (epoch {number} of {result['epochs']})"
        subject = f"{name} on {config.data.name}, {_SPLITS[split]}, {weights} weights{epoch}"
        if not isinstance(model.task, Multiclass):
            if probe or (removal is not None and removal.mode not in {None, "absent"}):
                raise ValueError(
                    f"{run} predicts no classes: leave out --probe and --removal. Its diagnosis is the blind-modality "
                    "test of its loss."
                )
            return blind_modality_test(model, batches, method=method, seed=config.seed, subject=subject)
        predictor = make_predictor(model, batches, removal, method=method, seed=config.seed)
        predictions = collect_predictions(predictor, batches)
        folder = Path(run).absolute().parent if alone is None else Path(alone)
        probes = (
            probe_run(config, model, folder, split=split, weights=weights, device=target, progress=progress)
            if probe
            else {}
        )
    gradients = Path(run) / GRADIENTS
    background = Background(
        subject,
        method=name,
        reference=probes,
        gradients=gradients if gradients.is_file() else None,
        can_probe=True,
    )
    return summarise(predictions, background, thresholds or Thresholds(), seed=config.seed)


def run_device(config: RunConfig) -> torch.device:
    """The GPU unless the run was kept off it."""
    accelerated = config.trainer.accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available()
    return torch.device("cuda" if accelerated else "cpu")
