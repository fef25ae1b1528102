"""Inputs that pretrained encoders were trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class EncoderInput:
    """What a pretrained encoder wants as input.

    Attributes:
        kind: image, text, waveform (of sound) or features (of sound, by the model's own extractor).
        size: Height and width of images; None where any will do.
        mean: Mean of the channels of images in [0, 1]; None where it is not known.
        std: Standard deviation of these channels.
        sample_rate: Samples of sound per second; None where it is not known.
        tokenizer: Name or folder of the tokeniser of text.
        max_length: Most tokens of a text, or steps of features.

    Example:
        >>> print(EncoderInput("image", size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3))
        images of 224×224 pixels with mean (0.5, 0.5, 0.5) and standard deviation (0.5, 0.5, 0.5)
    """

    kind: Literal["image", "text", "waveform", "features"]
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    sample_rate: int | None = None
    tokenizer: str | None = None
    max_length: int | None = None

    def __str__(self) -> str:
        if self.kind == "image":
            size = "" if self.size is None else f" of {self.size[0]}×{self.size[1]} pixels"
            if self.mean is None:
                return f"images{size} of a mean and deviation that its files do not say"
            return f"images{size} with mean {self.mean} and standard deviation {self.std}"
        if self.kind == "text":
            return f"tokens of the tokeniser of {self.tokenizer}, {self.max_length} at most"
        rate = (
            "a rate that its files do not say"
            if self.sample_rate is None
            else f"{self.sample_rate:,} samples per second"
        )
        return (
            f"waveforms at {rate}" if self.kind == "waveform" else f"features of its own extractor from sound at {rate}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data of what is known."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> EncoderInput:
        """What :meth:`as_dict` wrote."""
        values: dict[str, Any] = {u: tuple(value) if isinstance(value, list) else value for u, value in entries.items()}
        return cls(**values)
