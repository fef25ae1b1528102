"""Models of Hugging Face Transformers as encoders. Their code is the installed library's, and never a repository's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmlr._checks import nearest_name
from bmlr.encoders._preprocessing import EncoderInput

#: Names of the inputs of Transformers' models, and what they are. ``input_values`` may also be features.
_KINDS = {"pixel_values": "image", "input_ids": "text", "input_values": "waveform", "input_features": "features"}
_POOLINGS = ("mean", "cls", "pooler")


def describe(name: str, kind: str) -> dict[str, Any]:
    """Configuration, input and identity of a checkpoint, without its weights.

    Args:
        name: Name on the hub, or a folder.
        kind: Kind of the modality, by which a model of images and text is cut in two.

    Raises:
        ValueError: If there is no such checkpoint, or it needs code of its own.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    place = _place(name)
    try:
        file = cached_file(place, "config.json")
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        text = str(error)
        if "trust_remote_code" in text or "auto_map" in text:
            raise ValueError(
                f"hf/{name} needs code of its own, which is never run: take a model of Transformers."
            ) from error
        raise ValueError(
            f"hf/{name} is no checkpoint of Transformers, in a folder or on the hub: {_first_sentence(text)}"
        ) from error
    part = _part_of(config, kind)
    entries = _plain_config(json.loads(part.to_json_string()))
    entries["model_type"] = part.model_type
    return {
        "id": _identity(place, str(file)),
        "config": entries,
        "input": _input_of(place, name, part).as_dict(),
    }


class HuggingFaceEncoder(nn.Module):
    """A model of Transformers whose features are pooled.

    Args:
        name: Name on the hub, or a folder.
        checkpoint: What :func:`describe` gave.
        pooling: ``mean`` over all tokens that are not padding, all steps or all positions; ``cls``, the first token; or
            ``pooler``, the model's own ``pooler_output``. None is ``mean``.
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
        if pooling not in {None, *_POOLINGS}:
            raise ValueError(
                f"Parameter `pooling` of hf/{name} should be one of {', '.join(_POOLINGS)}. Found {pooling}."
            )
        self.input = EncoderInput.from_dict(checkpoint["input"])
        self.name, self.pooling = name, pooling or "mean"
        net, untrained = _load(name, checkpoint) if weights else (_empty(checkpoint), [])
        if gradient_checkpointing:
            # Older versions of Transformers have the second alone.
            enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if self.pooling != "pooler" and "add_pooling_layer" in inspect.signature(type(net)).parameters:
            net.pooler = None  # its weights would get no gradient
        self.argument: str = net.main_input_name
        self.net: nn.Module = net.get_encoder() if getattr(net.config, "is_encoder_decoder", False) else net
        if self.pooling == "pooler" and untrained:
            raise ValueError(
                f"hf/{name} has no trained pooler: its checkpoint lacks {untrained[0]}. Take pooling mean or cls."
            )
        pad = getattr(net.config, "pad_token_id", None)
        self.pad = 0 if pad is None else int(pad)

    def forward(self, x: Any) -> Tensor:
        """Features of shape (B, d).

        Args:
            x: Images (B, C, H, W), token indices (B, L) or a dictionary of ``input_ids`` and ``attention_mask``,
                waveforms (B, N), or features (B, T, d).
        """
        mask = None
        if self.input.kind == "text":
            ids = x["input_ids"] if isinstance(x, Mapping) else x
            ids = ids.long()
            mask = x.get("attention_mask") if isinstance(x, Mapping) else ids != self.pad
            output = self.net(input_ids=ids, attention_mask=None if mask is None else mask.long())
        else:
            # Whisper's features are (B, d, T).
            output = self.net(**{self.argument: x.transpose(1, 2) if self.argument == "input_features" else x})
        return self._pooled(output, mask)

    def _pooled(self, output: Any, mask: Tensor | None) -> Tensor:
        if self.pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(f"hf/{self.name} has no pooler: take pooling mean or cls.")
            return pooled.flatten(1)  # type: ignore[no-any-return]
        hidden: Tensor = output.last_hidden_state
        if hidden.ndim == 4:  # maps of a convolutional network
            if self.pooling == "cls":
                raise ValueError(f"hf/{self.name} has no tokens, so that there is no first: take pooling mean.")
            return hidden.mean((2, 3))
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None or mask.shape[1] != hidden.shape[1]:
            return hidden.mean(1)
        weight = mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def tokenize(name: str, texts: list[str], max_length: int | None = None) -> dict[str, Tensor]:
    """Token indices and attention mask of texts, shape (B, L) each, by the tokeniser of a checkpoint.

    Raises:
        ValueError: If the checkpoint has no tokeniser.
    """
    tokens = _tokenizer(_place(name))(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt", return_token_type_ids=False
    )
    return {key: tokens[key] for key in ("input_ids", "attention_mask")}


@functools.lru_cache(maxsize=4)
def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{place} has no tokeniser of Transformers: {_first_sentence(str(error))}") from error


def _place(name: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        near = nearest_name(folder.name, [entry.name for entry in folder.parent.glob("*") if entry.is_dir()])
        raise ValueError(f"There is no folder {folder} with a checkpoint of Transformers.{near}")
    return str(folder) if folder.is_dir() else name


def _part_of(config: Any, kind: str) -> Any:
    """The configuration of the part for a kind of modality, where a model has several."""
    parts = {"image": "vision_config", "frames": "vision_config", "text": "text_config"}
    if all(hasattr(config, part) for part in ("vision_config", "text_config")) and kind in parts:
        return getattr(config, parts[kind])
    return config


def _empty(checkpoint: Mapping[str, Any]) -> Any:
    """The model with random weights."""
    from transformers import AutoModel

    make: Any = AutoModel.from_config
    return make(_config_of(checkpoint), trust_remote_code=False, dtype=torch.get_default_dtype())


def _config_of(checkpoint: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    entries = _plain_config(checkpoint["config"])
    return AutoConfig.for_model(entries.pop("model_type"), **entries)


def _plain_config(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a configuration without those that name code, such as a repository with a kernel of attention."""
    return {
        name: _plain_config(value) if isinstance(value, dict) else value
        for name, value in entries.items()
        if not name.endswith("_implementation") and name not in {"transformers_version", "auto_map", "_name_or_path"}
    }


def _load(name: str, checkpoint: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The model with its weights, and the parameters of its pooler that the checkpoint lacks."""
    from transformers import AutoModel
    from transformers.utils.hub import cached_file

    place = _place(name)
    revision = None if Path(place).is_dir() else checkpoint["id"]
    config = _config_of(checkpoint)
    try:
        found = _identity(place, str(cached_file(place, "config.json", revision=revision)))
        if found != checkpoint["id"]:
            raise ValueError(
                f"hf/{name} is not the checkpoint that this run began with: its files have changed. Put them back, or "
                "choose another folder for the run."
            )
        with _quiet():
            net, info = AutoModel.from_pretrained(
                place, config=config, revision=revision, trust_remote_code=False, use_safetensors=True,
                dtype=torch.get_default_dtype(), output_loading_info=True,
            )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise ValueError(f"The weights of hf/{name} cannot be loaded: {_first_sentence(str(error))}") from error
    missing = sorted(info["missing_keys"])
    if strange := [key for key in missing if "pooler" not in key]:
        raise ValueError(
            f"hf/{name} is a checkpoint of another model than its config.json says: it lacks {strange[0]}"
            f"{f' and {len(strange) - 1} more' if len(strange) > 1 else ''}."
        )
    return net, missing


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' bar and its list of the weights that a part of a model does not take."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions have no types
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _identity(place: str, file: str) -> str:
    """Commit of a checkpoint of the hub, or checksum of a folder's configuration and weights."""
    from transformers.utils.hub import extract_commit_hash

    if not Path(place).is_dir():
        return str(extract_commit_hash(file, None))
    files = sorted([*Path(place).glob("config.json"), *Path(place).glob("*.safetensors")])
    return _checksum(tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@functools.lru_cache(maxsize=16)
def _checksum(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _input_of(place: str, name: str, config: Any) -> EncoderInput:
    """Input of a checkpoint, from its configuration and the JSON file of its processor."""
    from transformers import AutoModel

    make: Any = AutoModel.from_config
    plain = _config_of({"config": {**json.loads(config.to_json_string()), "model_type": config.model_type}})
    with torch.device("meta"):
        argument = make(plain, trust_remote_code=False).main_input_name
    kind = _KINDS.get(argument)
    if kind is None:
        raise ValueError(f"hf/{name} takes {argument}: encoders take images, text or sound.")
    if kind == "text":
        longest = getattr(config, "max_position_embeddings", None) or 512
        return EncoderInput("text", tokenizer=name, max_length=int(longest))
    processor = _processor_of(place)
    if kind == "image":
        return _image_input(processor, config)
    if kind == "features" or hasattr(config, "num_mel_bins"):
        return EncoderInput(
            "features", sample_rate=processor.get("sampling_rate"), max_length=getattr(config, "max_length", None)
        )
    return EncoderInput("waveform", sample_rate=processor.get("sampling_rate"))


def _processor_of(place: str) -> dict[str, Any]:
    """Entries of ``preprocessor_config.json``; empty without one."""
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(place, "preprocessor_config.json")
    except OSError:
        return {}
    entries: dict[str, Any] = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    return entries


def _image_input(processor: Mapping[str, Any], config: Any) -> EncoderInput:
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = size or processor.get("size") or getattr(config, "image_size", None)
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge") or size.get("longest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    elif isinstance(size, int):
        size = (size, size)
    height_width = None if size is None else (int(size[0]), int(size[1]))
    if not processor:
        return EncoderInput("image", size=height_width)
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean") or mean, processor.get("image_std") or std
    # Of values in [0, 1]: a processor that scales to [−1, 1] shifts and divides by others.
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    return EncoderInput(
        "image",
        size=height_width,
        mean=tuple(round(m / scale, 6) for m in mean),
        std=tuple(round(s / scale, 6) for s in std),
    )


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".") + "."
