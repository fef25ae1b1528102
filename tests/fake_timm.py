"""As much of timm's interface as the encoders use, for machines without torchvision, which timm needs.

Names, arguments and what they return are those of timm 1.0.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Tiny(nn.Module):
    """A model of timm: ``num_features``, ``pretrained_cfg``, and no classifier for ``num_classes=0``."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", width: int = 6) -> None:
        super().__init__()
        if global_pool not in {"avg", "max"}:
            raise AssertionError(f"Invalid pool type: {global_pool}")
        self.num_features, self.global_pool = width, global_pool
        self.conv = nn.Conv2d(in_chans, width, 3)
        self.fc = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.checkpointed = False
        self.pretrained_cfg: dict[str, Any] = {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointed = enable

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        logits: Tensor = self.fc(maps.mean((2, 3)) if self.global_pool == "avg" else maps.amax((2, 3)))
        return logits


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: object = None,
    checkpoint_path: object = None,
    **kwargs: Any,
) -> Tiny:
    folder = Path(model_name.removeprefix("local-dir:")) if model_name.startswith("local-dir:") else None
    entries: dict[str, Any] = {"architecture": "tiny", "pretrained_cfg": {}, "model_args": {}}
    if folder is not None:
        entries |= json.loads((folder / "config.json").read_text())
    elif model_name.partition(".")[0] != "tiny":
        raise RuntimeError(f"Unknown model ({model_name})")
    model = Tiny(**{**entries["model_args"], **kwargs})
    model.pretrained_cfg = {
        "architecture": "tiny", "input_size": (3, 16, 16), "mean": (0.2, 0.2, 0.2), "std": (0.5, 0.5, 0.5),
        "hf_hub_id": None if folder else "timm/tiny.a1", **entries["pretrained_cfg"],
    }  # fmt: skip
    if pretrained:
        if folder is None:
            raise RuntimeError("No pretrained weights exist for tiny.")
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
    return model


def resolve_model_data_config(model: Tiny) -> dict[str, Any]:
    return {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std")}


def save(folder: Path, width: int = 6) -> Tiny:
    """A checkpoint as ``timm.models.save_for_hf`` writes it."""
    torch.manual_seed(0)
    model = Tiny(num_classes=4, width=width)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    entries = {"architecture": "tiny", "model_args": {"width": width}, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(entries))
    return model


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import timm`` give this."""
    timm, data, models = (types.ModuleType(name) for name in ("timm", "timm.data", "timm.models"))
    vars(timm).update(
        __version__="1.0.0",
        create_model=create_model,
        data=data,
        models=models,
        is_model=lambda model_name: model_name == "tiny",
        list_models=lambda: ["tiny", "resnet18"],
    )
    vars(data).update(resolve_model_data_config=resolve_model_data_config)
    vars(models).update(load_model_config_from_hf=lambda model_id: ({}, "tiny", {}))
    for module in (timm, data, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
