"""Run folders as training leaves them, made without training."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bmlr.runs.storage import write_json

MODALITIES = ("audio", "image")


def make_run(
    folder: Path,
    method: str = "Joint",
    seed: int = 0,
    *,
    fused: float = 0.7,
    audio: float = 0.5,
    image: float = 0.6,
    **changes: Any,
) -> Path:
    """Write a finished run.

    Changes are data, protocol, data_args, method_args, class_path, epochs, modalities, and entries of the result.
    """
    epochs = changes.get("epochs", 3)
    names = changes.get("modalities", MODALITIES)
    protocol = changes.get("protocol", "clean")
    unimodal = dict(zip(names, (audio, image), strict=True))
    score = {
        "accuracy": fused,
        "unimodal_accuracy": unimodal,
        "ratio": {"/".join(names): audio / image if image else None},
        "samples": 20,
    }
    config: dict[str, Any] = {
        "data": {
            "class_path": "bmlr.data.Digits",
            "init_args": {"root": str(folder), "protocol": protocol, **changes.get("data_args", {})},
        },
        "method": {
            "class_path": changes.get("class_path", f"bmlr.methods.{method}"),
            "init_args": changes.get("method_args", {}),
        },
        "model": {"fusion": "concat"},
        "optimizer": {"name": "adam", "lr": 0.001},
        "trainer": {"epochs": epochs, "batch_size": 64, "progress": bool(seed), "num_workers": seed},
        "seed": seed,
    }
    result = {
        "data": changes.get("data", "digits"),
        "protocol": protocol,
        "method": config["method"]["class_path"].rpartition(".")[2],
        "seed": seed,
        "test": score,
        "validation": score,
        "best_epoch": 1,
        "epochs": epochs,
        "data_passes": float(epochs),
        "majority_rate": 0.25,
        "seconds": 90.0,
        "parameters": 1234,
        "samples": {"train": 60, "val": 20, "test": 20},
        "digest": "0",
        "versions": {"bmlr": "0.1.0", "torch": "2.0"},
        **changes.get("result", {}),
    }
    table: dict[str, Any] = {"epoch": range(epochs), "val_accuracy": [fused + 0.01 * epoch for epoch in range(epochs)]}
    for name, value in unimodal.items():
        table[f"val_accuracy_{name}"] = [value] * epochs
    table[f"val_ratio_{'_'.join(names)}"] = [audio / image if image else None] * epochs
    if method == "BMLR":
        table |= {f"train_reshaped_{name}": [0.25] * epochs for name in names}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    write_json(folder / "result.json", result)
    pd.DataFrame(table).to_csv(folder / "metrics.csv", index=False)
    return folder
