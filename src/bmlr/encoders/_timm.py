"""Models of timm as encoders of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bmlr._checks import nearest_name
from bmlr.encoders._preprocessing import EncoderInput

#: Entries of a pretrained configuration that say where the weights come from.
_SOURCE = ("architecture", "tag", "url", "hf_hub_id", "hf_hub_filename")


def describe(name: str) -> dict[str, Any]:
    """Configuration, input and identity of a model of timm, without its weights.

    Raises:
        ValueError: If there is no such model.
    """
    from timm.data import resolve_model_data_config

    net = _create(name, pretrained=False)
    data = resolve_model_data_config(net)
    channels, height, width = data["input_size"]
    if channels != 3:
        raise ValueError(f"timm/{name} takes images of {channels} channels. Encoders of images take 3.")
    wanted = EncoderInput("image", size=(height, width), mean=tuple(data["mean"]), std=tuple(data["std"]))
    config, identity = _identify(name, net)
    return {"id": identity, "config": config, "input": wanted.as_dict()}


class TimmEncoder(nn.Module):
    """A model of timm without its classifier.

    Args:
        name: Name in timm, such as ``resnet18.a1_in1k``.
        checkpoint: What :func:`describe` gave.
        pooling: Global pooling, as timm names it (``avg``, ``max``, ``token``, …); None takes the model's own.
        weights: Load the pretrained weights; else they are random, to be loaded from a run.
        gradient_checkpointing: Compute the activations anew in the backward pass.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Mapping[str, Any],
        *,
        pooling: str | None = None,
        weights: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.pooling = name, pooling
        self.input = EncoderInput.from_dict(checkpoint["input"])
        options = {} if pooling is None else {"global_pool": pooling}
        if weights:
            self.net = _create(name, pretrained=True, **options)
            if _identify(name, self.net)[1] != checkpoint["id"]:
                raise ValueError(
                    f"timm/{name} is not the checkpoint that this run began with: it has changed. Put it back, or "
                    "choose another folder for the run."
                )
        else:  # without the folder or the hub that the weights came from
            config = checkpoint["config"]
            self.net = _create(config["architecture"], pretrained=False, **{**config["model_args"], **options})
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (B, d) from images of shape (B, 3, H, W)."""
        if self.gradient_checkpointing:
            # Not in evaluation mode: a method that encodes in it goes back to training mode before the backward pass,
            # which would then drop and normalise otherwise than the forward pass did.
            self.net.set_grad_checkpointing(self.training)
        features: Tensor = self.net(x)
        return features


def _identify(name: str, net: Any) -> tuple[dict[str, Any], str]:
    """What makes a model again without its weights, and a checksum of it and of weights in a folder."""
    import timm

    config = {key: net.pretrained_cfg[key] for key in _SOURCE if net.pretrained_cfg.get(key)}
    config["model_args"] = _arguments_of(name)
    digest = hashlib.sha256(json.dumps([timm.__version__.split(".")[0], config], sort_keys=True).encode())
    if folder := _folder_of(name):
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return config, digest.hexdigest()


def _folder_of(name: str) -> Path | None:
    """Folder of ``local-dir:FOLDER``; None for another name."""
    return Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None


def _arguments_of(name: str) -> dict[str, Any]:
    """Arguments of its constructor that a model in a folder or on the hub was saved with."""
    from timm.models import load_model_config_from_hf

    if folder := _folder_of(name):
        entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return dict(entries.get("model_args") or {})
    return dict(load_model_config_from_hf(name.partition(":")[2])[2] or {}) if ":" in name else {}


def _create(name: str, *, pretrained: bool, **options: Any) -> Any:
    import timm

    architecture = name.partition(":")[2] if ":" in name else name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        near = nearest_name(architecture, timm.list_models())
        raise ValueError(f"There is no model '{architecture}' in timm {timm.__version__}.{near}")
    try:
        return timm.create_model(name, pretrained=pretrained, **{**options, "num_classes": 0})
    except (RuntimeError, OSError, ValueError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"timm/{name} cannot be made: {reason}.") from error
