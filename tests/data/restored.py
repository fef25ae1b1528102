"""A data set as a run keeps it: without its data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bmlr._files import json_text, parse_json
from bmlr.data import MultimodalData, Preprocessing


def assert_read_without_data(data: MultimodalData, files: Mapping[str, Any], root: str = "nowhere") -> None:
    """New files are read alike by what the data set gives to be kept, though its data is gone."""
    kept = data.preprocessing()
    assert kept is not None
    parameters = {**data.hparams, **({"root": root} if "root" in data.hparams else {})}
    restored = type(data)(**parameters)
    arrays = {name: np.array(array) for name, array in kept.arrays.items()}
    restored.restore_preprocessing(
        Preprocessing(kept.classes, kept.modalities, parse_json(json_text(kept.entries)), arrays)
    )
    assert (restored.classes, restored.modalities) == (data.classes, data.modalities)
    expected, found = data.load_files(files), restored.load_files(files)
    assert expected.keys() == found.keys()
    for name, inputs in expected.items():
        assert torch.equal(found[name], inputs), name
