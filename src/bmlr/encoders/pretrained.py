"""Pretrained encoders by name: ``hf/NAME-or-folder`` of Transformers, ``timm/NAME`` of timm.

Needs the ``hf`` or the ``timm`` extra. Weights are read as tensors alone, and the code of a model is that of the
installed library: what comes from a hub or a folder is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, nearest_name
from bmlr._extras import missing_extra
from bmlr._modes import module_mode
from bmlr.encoders import _huggingface, _timm
from bmlr.encoders._huggingface import tokenize
from bmlr.encoders._preprocessing import EncoderInput

__all__ = ["EncoderInput", "PretrainedEncoder", "describe", "is_pretrained", "load", "tokenize"]

#: Kinds of modalities that an input takes; frames are images, one by one.
_KINDS = {"image": ("image", "frames", "spectrogram"), "text": ("text",), "waveform": ("waveform",),
          "features": ("sequence", "spectrogram")}  # fmt: skip


class PretrainedEncoder(nn.Module):
    """A pretrained model as the encoder of a modality.

    Args:
        name: ``hf/NAME``, ``hf/FOLDER`` or ``timm/NAME``.
        kind: Kind of the modality.
        shape: Shape of one sample's input.
        checkpoint: What :func:`describe` gave; None asks for it now.
        frozen: Leave the model as it is: it gets no gradients, and stays in evaluation mode.
        pooling: How features of tokens, steps or positions become one vector: ``mean`` (the default), ``cls`` or
            ``pooler`` of Transformers; timm's ``global_pool``, by default the model's own.
        gradient_checkpointing: Compute the activations anew in the backward pass, for less memory.
        weights: Load the pretrained weights; else they are random.

    Attributes:
        num_features: Width of the features.
        input: What the model wants as input.

    Raises:
        ValueError: If there is no such model, or it does not take inputs of this kind; the message says what to do.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        shape: Sequence[int],
        checkpoint: Mapping[str, Any] | None = None,
        *,
        frozen: bool = False,
        pooling: str | None = None,
        gradient_checkpointing: bool = False,
        weights: bool = True,
    ) -> None:
        super().__init__()
        library, _, model = name.partition("/")
        checkpoint = checkpoint or describe(name, kind)
        make = _timm.TimmEncoder if library == "timm" else _huggingface.HuggingFaceEncoder
        self.frozen, self.kind = frozen, kind
        self.model = make(
            model, checkpoint, pooling=pooling, weights=weights, gradient_checkpointing=gradient_checkpointing
        )
        self.input: EncoderInput = self.model.input
        if kind not in _KINDS[self.input.kind]:
            raise ValueError(
                f"{name} takes {self.input}. It cannot be the encoder of a modality of kind '{kind}' and shape "
                f"{tuple(shape)}."
            )
        if frozen:
            self.model.requires_grad_(False).eval()
        self.num_features = self._width(name, shape)

    def _width(self, name: str, shape: Sequence[int]) -> int:
        try:
            with torch.no_grad(), module_mode(self, training=False):
                return int(self(torch.ones(1, *shape)).shape[1])
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if str(error).startswith(name):
                raise
            reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            raise ValueError(
                f"{name} takes {self.input}. It fails on inputs of shape {tuple(shape)}: {reason}."
            ) from error

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Switch the mode; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, x: Any) -> Tensor:
        """Features of shape (B, d); of frames (B, T, C, H, W) the mean over time."""
        if self.kind == "frames":
            return self._encode(x.flatten(0, 1)).reshape(*x.shape[:2], -1).mean(1)
        return self._encode(x)

    def _encode(self, x: Any) -> Tensor:
        if self.input.kind == "image" and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)  # grey
        elif self.input.kind == "features" and self.kind == "spectrogram":
            x = x[:, 0].transpose(1, 2)  # to (B, T, bins)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.model(x)
        return features


def is_pretrained(name: str) -> bool:
    """Whether a name is that of a pretrained model.

    Example:
        >>> is_pretrained("hf/bert-base-uncased"), is_pretrained("mymodel.Net")
        (True, False)
    """
    return name.startswith(("hf/", "timm/"))


def absolute_name(name: str) -> str:
    """The name with the absolute path of its folder, if it has one, so that it holds in every working directory.

    Example:
        >>> absolute_name("hf/google/vit-base-patch16-224")
        'hf/google/vit-base-patch16-224'
    """
    for prefix in ("hf/", "timm/local-dir:"):
        folder = Path(name.removeprefix(prefix)).expanduser()
        if name.startswith(prefix) and folder.is_dir():
            return f"{prefix}{folder.absolute()}"
    return name


def describe(name: str, kind: str) -> dict[str, Any]:
    """Configuration, input and identity of a pretrained model, as plain data and without its weights.

    Args:
        name: ``hf/NAME``, ``hf/FOLDER`` or ``timm/NAME``.
        kind: Kind of the modality.

    Raises:
        ValueError: If there is no such model.
        ModuleNotFoundError: If its library is missing; the message says how to install it.
    """
    library, _, model = name.partition("/")
    if library not in {"hf", "timm"} or not model:
        raise ValueError(f"A pretrained encoder is written hf/NAME, hf/FOLDER or timm/NAME. Found '{name}'.")
    try:
        return _timm.describe(model) if library == "timm" else _huggingface.describe(model, kind)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of an entry of a configuration.

    Raises:
        ValueError: If one is unknown, with the nearest, or has a value that is not allowed.
    """
    parameters = inspect.signature(PretrainedEncoder).parameters.values()
    named = [entry.name for entry in parameters if entry.kind is entry.KEYWORD_ONLY and entry.name != "weights"]
    allowed = [*named, "preprocessing"]
    for argument, value in arguments.items():
        if argument not in allowed:
            raise ValueError(
                f"Encoder {name} takes {', '.join(allowed)}. Found '{argument}'.{nearest_name(argument, allowed)}"
            )
        if argument in {"frozen", "gradient_checkpointing"} and not isinstance(value, bool):
            raise ValueError(f"Parameter `{argument}` of {name} should be true or false. Found {value}.")
    check_choice("preprocessing", arguments.get("preprocessing", "follow"), ("follow", "ignore"))


def load(name: str, kind: str = "image", shape: Sequence[int] | None = None, **options: Any) -> PretrainedEncoder:
    """A pretrained encoder for a model of one's own.

    Args:
        name: ``hf/NAME``, ``hf/FOLDER`` or ``timm/NAME``.
        kind: Kind of its input: image, frames, text, waveform, spectrogram or sequence.
        shape: Shape of one sample's input; None takes the model's own, where it says so.
        **options: See :class:`PretrainedEncoder`.

    Raises:
        ValueError: If there is no such model, it does not take such inputs, or its shape must be given.
    """
    checkpoint = describe(name, kind)
    if shape is None:
        wanted = EncoderInput.from_dict(checkpoint["input"])
        if wanted.size is None and wanted.kind == "image":
            raise ValueError(f"`shape` should be given for {name}: its files do not say the size of its images.")
        shape = {"image": (3, *(wanted.size or ())), "text": (8,), "waveform": (wanted.sample_rate or 16000,)}.get(kind)
        if shape is None:
            raise ValueError(f"`shape` should be given for inputs of kind '{kind}'.")
    return PretrainedEncoder(name, kind, shape, checkpoint, **options)
