"""What a run keeps of its data, and whether other data is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmlr._files import file_checksum
from bmlr.config import RunConfig
from bmlr.data import Modality, Preprocessing
from bmlr.runs import MissingDataError, RunError
from bmlr.runs.layout import DATA, DATA_ARRAYS
from bmlr.runs.storage import DamagedFileError, read_json, read_weights, write_json, write_weights


def write_data_files(directory: Path, config: RunConfig) -> None:
    """Write what new files need to be read as the prepared data was, and the checksum of that data.

    Afterwards the run predicts without its data.
    """
    preprocessing = config.model_data.preprocessing()
    content: dict[str, Any] = {"content": config.data.content_digest, "digest": config.digest, "preprocessing": None}
    if preprocessing is not None:
        if preprocessing.arrays:
            arrays = {name: torch.from_numpy(np.array(array)) for name, array in preprocessing.arrays.items()}
            write_weights(directory / DATA_ARRAYS, arrays)
        content["preprocessing"] = {
            "classes": list(preprocessing.classes),
            "modalities": {name: dataclasses.asdict(form) for name, form in preprocessing.modalities.items()},
            "entries": dict(preprocessing.entries),
            "arrays": file_checksum(directory / DATA_ARRAYS) if preprocessing.arrays else None,
        }
    write_json(directory / DATA, content)


def read_data_files(directory: Path) -> dict[str, Any]:
    """Read ``data.json``; empty where the run has none.

    Raises:
        RunError: If it is damaged.
    """
    try:
        return read_json(directory / DATA)
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        raise _damaged(error) from error


def has_data_files(directory: Path) -> bool:
    """Whether a run has its data files, undamaged."""
    try:
        kept = read_data_files(directory)["preprocessing"]
        return kept is None or kept["arrays"] is None or file_checksum(directory / DATA_ARRAYS) == kept["arrays"]
    except (RunError, KeyError, OSError):
        return False


def restore_data(directory: Path, config: RunConfig) -> None:
    """Let the data set of a run read new files, without its data where the run has kept what that needs.

    Raises:
        RunError: If the kept files are damaged, or the data is needed and missing.
    """
    recorded = read_data_files(directory)
    kept = recorded.get("preprocessing")
    if kept is None:
        open_data(directory, config)
        return
    try:
        arrays = {}
        if kept["arrays"] is not None:
            if file_checksum(directory / DATA_ARRAYS) != kept["arrays"]:
                raise DamagedFileError(f"{directory / DATA_ARRAYS} does not fit {DATA}.")
            arrays = {name: tensor.numpy() for name, tensor in read_weights(directory / DATA_ARRAYS).items()}
        modalities = {name: Modality.from_dict(form) for name, form in kept["modalities"].items()}
        config.data.restore_preprocessing(Preprocessing(tuple(kept["classes"]), modalities, kept["entries"], arrays))
    except (DamagedFileError, OSError, KeyError, TypeError) as error:
        raise _damaged(error) from error


def open_data(directory: Path, config: RunConfig) -> None:
    """Open the data of a run and check that it is the data it was trained on.

    Raises:
        MissingDataError: If it is missing; the message says how to name its place.
        RunError: If it is other data.
    """
    try:
        config.data.prepare()
        content = config.data.content_digest
    except FileNotFoundError as error:
        raise MissingDataError(f"The data of {directory} is missing: {error} {_HOW_TO_NAME}") from error
    recorded = read_data_files(directory)
    if recorded and recorded["content"] != content:
        root = getattr(config.data, "root", config.data.name)
        raise RunError(f"{root} does not hold the data that {directory} was trained on. {_HOW_TO_NAME}")


_HOW_TO_NAME = "If the data was moved, say where it is with --data.root FOLDER."


def _damaged(error: Exception) -> RunError:
    return RunError(f"{error} The training command with --resume writes it again.")
