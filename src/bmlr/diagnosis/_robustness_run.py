"""Robustness of a run, and its files."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bmlr._checks import check_choice, check_modalities
from bmlr._files import atomic_write, atomic_write_text, json_text
from bmlr._random import preserved_random_state
from bmlr.diagnosis._robustness import Levels, Robustness, measure_robustness
from bmlr.diagnosis._run import run_device
from bmlr.tables import format_count, write_table

if TYPE_CHECKING:
    from bmlr.config import RunConfig
    from bmlr.data import SplitName
    from bmlr.training.loader import RequestLoader

#: Training samples, evenly spaced, that the units of noise come from.
_TRAINING_SAMPLES = 1000


def measure_run_robustness(
    run: Path | str,
    missing: Mapping[str, Levels] | None = None,
    noise: Mapping[str, Levels] | None = None,
    *,
    split: SplitName = "test",
    weights: str = "best",
    seed: int = 0,
    root: Path | str | None = None,
) -> Robustness:
    """Score a run under missing and noisy modalities, at evaluation only; see :func:`measure_robustness`.

    The unit of noise comes from at most 1000 samples of the training split, evenly spaced, without random transforms.

    Args:
        run: Directory of the run.
        missing: Rates at which samples lose a modality, by name.
        noise: Levels of noise, by name.
        split: train, val or test.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        seed: Seed of the draws.
        root: Folder of the data, if it was moved.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged, or its data is missing or other data.
        ValueError: If an argument does not fit.
    """
    from bmlr.training import load, split_batches

    check_choice("split", split, ("train", "val", "test"))
    with preserved_random_state():
        loaded = load(run, weights=weights, root=root, with_data=True)
        config = loaded.config
        for argument, names in {"missing": missing or {}, "noise": noise or {}}.items():
            check_modalities(argument, names, loaded.model.modalities)
        for name in noise or {}:
            if config.model_data.modalities[name].kind == "text":
                raise ValueError(f"Words take no noise. Take them away at a rate instead: --missing {name}.")
        device = run_device(config)
        loaded.model.to(device), loaded.method.to(device)
        return measure_robustness(
            loaded.model,
            split_batches(config, split),
            missing,
            noise,
            training_batches=_spaced_training_batches(config) if noise else None,
            method=loaded.method,
            seed=seed,
            subject=f"{type(loaded.method).__name__} on {config.data.name}, {split} split, {weights} weights",
        )


def _spaced_training_batches(config: RunConfig) -> RequestLoader:
    from bmlr.training.loader import RequestLoader, ordered_requests

    training = config.split("train")
    step = max(1, len(training) // _TRAINING_SAMPLES)
    requests = ordered_requests(len(training), config.batch_size, world_size=step)
    return RequestLoader(training, requests, num_workers=config.trainer.num_workers)


def write_robustness(robustness: Robustness, directory: Path | str) -> list[Path]:
    """Write ``robustness.json``, ``.md``, ``.tex`` and ``.csv``, and the curves of sweeps as ``robustness.png``.

    Args:
        robustness: Scores of a model.
        directory: Folder, created if missing.

    Returns:
        The files written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    import pandas as pd

    content = robustness.as_dict()
    atomic_write_text(directory / "robustness.json", json_text(content) + "\n")
    rows = [
        {
            **{f"missing {name}": rate for name, rate in row["missing"].items()},
            **{f"noise {name}": level for name, level in row["noise"].items()},
            **{f"{name} {end}": x[end] for name, x in row["scores"].items() for end in ("value", "low", "high")},
            **{f"lost {end}": row["lost"][end] for end in ("value", "low", "high")},
        }
        for row in content["scores"]
    ]
    columns = sorted({name for row in rows for name in row}, key=lambda name: not name.startswith(("missing", "noise")))
    frame = pd.DataFrame(rows, columns=columns)
    corruptions = [name for name in columns if name.startswith(("missing ", "noise "))]
    frame[corruptions] = frame[corruptions].fillna(0.0)
    written = [directory / "robustness.json", *write_table(robustness.table(), frame, directory, "robustness")]
    if robustness.sweeps:
        from matplotlib.figure import Figure

        from bmlr.diagnosis.figures import plot_robustness
        from bmlr.figures.style import save, set_title, shared_legend

        count = len(robustness.sweeps)
        across = 2 if count in {2, 4} else min(count, 3)
        down = math.ceil(count / across)
        figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.5), layout="constrained")  # pyplot would keep it
        grid = figure.add_gridspec(down, across)
        panels = {name: figure.add_subplot(grid[divmod(i, across)]) for i, name in enumerate(robustness.sweeps)}
        plot_robustness(robustness, panels)
        shared_legend(figure, list(panels.values()))
        title = f"{robustness.subject}, {format_count(robustness.samples, 'sample')}; bands: 95 % intervals"
        if robustness.fixed is not None:
            title += f"; in all: {robustness.fixed.corruption}"
        set_title(figure, title)
        atomic_write(directory / "robustness.png", functools.partial(save, figure, format="png", dpi=150))
        written.append(directory / "robustness.png")
    return written
