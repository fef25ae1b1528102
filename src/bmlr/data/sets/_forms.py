"""Conversion of stored values and of new files into inputs of a model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmlr.batch import LateInput, empty_for_batch
from bmlr.data._base import Modality
from bmlr.data.readers._base import is_longer
from bmlr.data.readers._container import open_stream
from bmlr.data.readers._registry import reader_of
from bmlr.data.readers._text import bytes_to_text, text_to_bytes
from bmlr.data.readers.suffixes import VIDEO_SUFFIXES
from bmlr.data.sets._standardise import standardise
from bmlr.data.transforms._frames import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crop,
    choose_crops,
    resize_crops,
)
from bmlr.data.transforms._tokens import Tokeniser
from bmlr.encoders.pretrained import EncoderInput


@dataclasses.dataclass(frozen=True)
class Form:
    """Conversion of one modality's stored values into inputs of a model.

    Attributes:
        modality: Form of the inputs.
        statistics: Mean and standard deviation of each feature, shape (2, d), or of each channel of frames that are no
            colours; None leaves values as they are, and colours to ``images``.
        images: Mean and standard deviation of images and frames; None takes ImageNet's.
        flip: Probability that images and frames are mirrored in training.
        tokeniser: Tokeniser of texts.
        max_tokens: Most tokens of a text; the end of longer ones is cut off.
    """

    modality: Modality
    statistics: np.ndarray | None = None
    images: EncoderInput | None = None
    flip: float = 0.5
    tokeniser: Tokeniser | None = None
    max_tokens: int = 0

    def inputs(self, samples: Sequence[np.ndarray], seeds: Sequence[int], *, train: bool) -> Tensor:
        """Inputs (B, …), float32, of texts int64; zeros or padding for an absent sample.

        Args:
            samples: Stored rows of each sample: one where the shape is fixed, else T, 0 where it is absent.
            seeds: Seed of each sample's random transforms.
            train: Apply the random transforms.
        """
        if self.tokeniser is not None:
            return self._tokens(samples, self.tokeniser)
        return self._gathered(samples, seeds, train=train, dtype=torch.float32).finish()

    def late_inputs(self, samples: Sequence[np.ndarray], seeds: Sequence[int], *, train: bool) -> Tensor | StoredInput:
        """The same, to be finished later where the stored form is smaller than the inputs."""
        if self.modality.kind not in {"image", "frames", "spectrogram"}:
            return self.inputs(samples, seeds, train=train)
        half = all(rows.dtype == np.float16 for rows in samples if len(rows))
        return self._gathered(samples, seeds, train=train, dtype=torch.float16 if half else torch.float32)

    def finish(self, values: Tensor, crops: Sequence[Crop]) -> Tensor:
        """Inputs (P, …), float32, of gathered values."""
        if self.modality.kind in {"image", "frames"}:
            images = self._images(values, crops)
            return images[:, 0] if self.modality.kind == "image" else images
        return values.float()

    def _gathered(
        self, samples: Sequence[np.ndarray], seeds: Sequence[int], *, train: bool, dtype: torch.dtype
    ) -> StoredInput:
        """Stored values of the samples that have them, copied once; those that are no images as ``dtype``."""
        present = [position for position, rows in enumerate(samples) if len(rows)]
        found, kind, shape = [samples[position] for position in present], self.modality.kind, self.modality.shape
        if kind == "sequence":
            shape = (max(shape[0], *map(len, samples)), *shape[1:])
        where = None if len(present) == len(samples) else torch.tensor(present, dtype=torch.int64)
        crops: list[Crop] = []
        if not found:
            values = torch.zeros(0, *shape)
        elif kind in {"image", "frames"}:
            known = [seeds[position] for position in present]
            count, rows = shape[0] if kind == "frames" else 1, found[0]
            values = empty_for_batch((len(found), count, *rows.shape[1:]), torch.from_numpy(rows[:0].copy()).dtype)
            for target, rows, seed in zip(values.numpy(), found, known, strict=True):
                rng = np.random.default_rng(seed) if train else None
                for frame, position in zip(target, choose_frames(len(rows), count, rng), strict=True):
                    frame[:] = rows[position]
            height, width = values.shape[2:4]
            crops = choose_crops(torch.tensor(known, dtype=torch.int64), height, width, train=train, flip=self.flip)
        else:
            make = torch.zeros if kind == "sequence" else empty_for_batch
            values = make((len(found), *shape), dtype=dtype)
            array = values.numpy()
            for target, rows in zip(array, found, strict=True):
                if kind == "sequence":
                    target[: len(rows)] = rows
                else:
                    target[:] = rows[0]
            if self.statistics is not None:
                values = torch.from_numpy(self.standardised(array))
        return StoredInput(self, values, len(samples), where, tuple(crops))

    def _tokens(self, samples: Sequence[np.ndarray], tokeniser: Tokeniser) -> Tensor:
        """Indices (B, T) of stored texts."""
        rows = [
            tokeniser.encode(bytes_to_text(values), self.max_tokens)[0] if len(values) else np.zeros(0, np.int64)
            for values in samples
        ]
        tokens = np.full((len(rows), max(self.modality.shape[0], *map(len, rows))), tokeniser.padding, dtype=np.int64)
        for row, indices in zip(tokens, rows, strict=True):
            row[: len(indices)] = indices
        return torch.from_numpy(tokens)

    def _images(self, frames: Tensor, crops: Sequence[Crop]) -> Tensor:
        """Frames (B, T, H, W, C) cut, resized and normalised."""
        known, in_bytes = self.images, frames.dtype == torch.uint8
        mean, std = (known and known.mean) or IMAGENET_MEAN, (known and known.std) or IMAGENET_STD
        if not (in_bytes and frames.shape[-1] == 3):
            statistics = np.tile([[0.0], [1.0]], frames.shape[-1]) if self.statistics is None else self.statistics
            mean, std = statistics / (255 if in_bytes else 1)
        return resize_crops(frames, crops, self.modality.shape[-1], mean=tuple(mean), std=tuple(std))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Values (…, d) shifted and scaled.

        Time steps of zeros are padding and must stay zero.
        """
        if self.statistics is None:
            return values
        standardised = standardise(values, self.statistics)
        if self.modality.kind == "sequence":
            standardised[~values.any(-1)] = 0
        return standardised


@dataclasses.dataclass(frozen=True)
class StoredInput(LateInput):
    """Values as they are stored, to become inputs on the device of the model.

    Attributes:
        form: The conversion.
        values: Values of the samples that have the modality, shape (P, …).
        batch_size: Number of samples.
        where: Positions of those that have it, shape (P,), int64; None for all.
        crops: Crop of each image.
    """

    form: Form
    values: Tensor
    batch_size: int
    where: Tensor | None
    crops: tuple[Crop, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.values.nbytes

    def map(self, function: Callable[[Tensor], Tensor]) -> StoredInput:
        """The same with values and positions moved."""
        where = None if self.where is None else function(self.where)
        return dataclasses.replace(self, values=function(self.values), where=where)

    def finish(self) -> Tensor:
        """Inputs (B, …), float32; zeros for an absent sample."""
        inputs = self.values if not len(self.values) else self.form.finish(self.values, self.crops)
        if self.where is None:
            return inputs
        whole = empty_for_batch((self.batch_size, *inputs.shape[1:]), inputs.dtype, inputs.device).zero_()
        return whole.index_copy_(0, self.where, inputs)


@dataclasses.dataclass(frozen=True)
class FileForms:
    """How new files are read and converted.

    Attributes:
        forms: Conversion of stored values into inputs, by modality.
        stored: Form of the stored values, by modality.
        readers: Parameters of the readers, by modality; empty where a subclass reads files itself.
        optional: Modalities that some prepared sample lacks.
    """

    forms: Mapping[str, Form]
    stored: Mapping[str, Modality]
    readers: Mapping[str, Mapping[str, Any]]
    optional: frozenset[str]

    def read(self, name: str, path: Path | str | None) -> np.ndarray:
        """Rows of a new file, or of a text itself, in its stored form; no rows without one."""
        stored = self.stored[name]
        fixed = stored.shape[0] != -1
        row_shape = stored.shape if fixed else stored.shape[1:]
        if path is None:
            return np.zeros((0, *row_shape), dtype=np.float32)
        if isinstance(path, str):
            return text_to_bytes(path)
        reader = reader_of(self.readers[name])
        content = reader(path)
        if is_longer(content.seconds, reader.window):
            warnings.warn(
                f"{path} lasts {content.seconds:.1f} s. Its first {reader.window:g} s are used, as in training.",
                stacklevel=2,
            )
        values = content.values
        rows: np.ndarray = values[None] if fixed else values
        if rows.shape[1:] != row_shape or not len(rows):
            raise ValueError(
                f"{path} should have shape {stored.shape} as '{name}', −1 being any. Found {values.shape}."
            )
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise ValueError(f"{path} should be finite. Found NaN or infinity.")
        return rows


def is_colour(frames: np.ndarray) -> bool:
    """Whether frames (…, C) are red, green and blue from 0 to 255."""
    return frames.dtype == np.uint8 and frames.shape[-1] == 3


def choose_frames(count: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Positions of ``wanted`` frames, one per segment of the video.

    The segments are equal.

    Args:
        count: Number of frames in the video.
        wanted: Number of frames to choose; above ``count``, frames repeat.
        rng: Draws a position in each segment; None takes the middle.

    Example:
        >>> choose_frames(10, 3, None).tolist()
        [1, 5, 8]
    """
    offsets = 0.5 if rng is None else rng.random(wanted)
    positions: np.ndarray = ((np.arange(wanted) + offsets) * count / wanted).astype(np.int64)
    return positions.clip(max=count - 1)


def sound_of_video(
    paths: Mapping[str, Path | str], forms: Mapping[str, Form], optional: Collection[str] = ()
) -> dict[str, Path]:
    """The video as the file of the audio, where only the video is given.

    A video without sound leaves out optional audio; other audio is then refused by its reader.
    """
    audio = [name for name, form in forms.items() if form.modality.kind == "spectrogram" and name not in paths]
    videos = [
        path
        for name, path in paths.items()
        if forms[name].modality.kind == "frames" and isinstance(path, Path) and path.suffix.lower() in VIDEO_SUFFIXES
    ]
    if not len(audio) == len(videos) == 1 or (audio[0] in optional and not _has_sound(videos[0])):
        return {}
    return {audio[0]: videos[0]}


def _has_sound(video: Path) -> bool:
    try:
        with open_stream(video, "audio"):
            return True
    except ValueError:  # of a damaged video its own reader says so
        return False
