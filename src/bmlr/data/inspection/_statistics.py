"""Statistics of a modality's inputs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.transforms._tokens import split_words

_SHORT_TEXT = 8  # different words or tokens, up to which equal texts are no copies


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Minimum, median and maximum."""

    min: float
    median: float
    max: float


@dataclasses.dataclass(frozen=True)
class InputReport:
    """Statistics of one modality in one split, over the samples read.

    Attributes:
        missing: Fraction of the samples without it.
        min: Smallest value; None without values. NaN, infinity and time steps of padding are excluded, here and below.
        max: Largest value.
        mean: Mean of all values.
        std: Standard deviation of all values.
        nan: Number of values that are NaN.
        infinite: Number of values that are infinite.
        constant: Number of samples with one value throughout: silence, a black image.
        steps: Number of time steps without padding of sequences, and of tokens of texts.
        seconds: Length of the recordings or videos in seconds, of all samples, where known.
    """

    missing: float
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nan: int
    infinite: int
    constant: int
    steps: ValueRange | None
    seconds: ValueRange | None


class InputStatistics:
    """Running statistics of one modality in one split, batch by batch.

    Attributes:
        digests: What tells equal inputs, or equal texts, of all samples but silent and short ones.
        is_written: Whether the inputs were made of texts that are known.
    """

    def __init__(self, form: Modality) -> None:
        self.form = form
        self.samples = self.missing = self.nan = self.infinite = self.constant = self.count = 0
        self.min, self.max, self.mean, self.squares = np.inf, -np.inf, 0.0, 0.0
        self.is_written = False
        self.steps: list[int] = []
        self.digests: list[bytes] = []

    def add_batch(self, values: np.ndarray, present: np.ndarray, texts: Sequence[str] | None = None) -> None:
        """Add the inputs (B, …) of a batch.

        Args:
            values: The inputs.
            present: Mask of the samples that have the modality, shape (B,).
            texts: The B texts that the inputs were made of, as they were written; None where they are not known.
        """
        self.is_written = texts is not None
        self.samples += len(values)
        self.missing += int((~present).sum())
        values = values[present]
        if not values.size:
            return
        flat = values.reshape(len(values), -1)
        if texts is not None:  # Texts that differ in words outside the vocabulary alone have the same inputs.
            self._add_copies([split_words(text) for text, there in zip(texts, present, strict=True) if there])
        self.nan += int(np.isnan(flat).sum())
        self.infinite += int(np.isinf(flat).sum())
        if self.form.kind == "text":
            self._add_tokens(flat)
            if texts is None:
                self._add_copies([row[row != self.form.padding].tolist() for row in flat])
            return
        constant = (flat == flat[:, :1]).all(1)
        self.constant += int(constant.sum())
        if texts is None:  # Silence is alike everywhere; as a duplicate it would be a false alarm.
            different = values[~constant]
            self.digests += [_digest(value) for value in different]
        if self.form.kind == "sequence":
            real = (values != 0).any(-1)
            self.steps += real.sum(-1).tolist()
            flat = values[real]
        self._add(flat[np.isfinite(flat)].astype(np.float64))

    def _add_tokens(self, tokens: np.ndarray) -> None:
        """Count tokens; their indices are no quantities."""
        self.steps += (tokens != self.form.padding).sum(-1).tolist()

    def _add_copies(self, texts: Sequence[Sequence[str] | Sequence[int]]) -> None:
        """Digests of texts, given as words or tokens."""
        long = [text for text in texts if len(set(text)) > _SHORT_TEXT]
        self.digests += [_digest(np.frombuffer(repr(text).encode(), dtype=np.uint8)) for text in long]

    def _add(self, values: np.ndarray) -> None:
        """Update range, mean and sum of squared deviations.

        Stable for a large mean (Chan et al., 1979).
        """
        if not len(values):
            return
        mean = float(values.mean())
        total = self.count + len(values)
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total
        self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))

    def report(self, seconds: Sequence[float]) -> InputReport:
        """Statistics of all batches added."""
        has_values = self.count > 0
        return InputReport(
            missing=self.missing / self.samples,
            min=self.min if has_values else None,
            max=self.max if has_values else None,
            mean=self.mean if has_values else None,
            std=float(np.sqrt(self.squares / self.count)) if has_values else None,
            nan=self.nan,
            infinite=self.infinite,
            constant=self.constant,
            steps=_range(self.steps),
            seconds=_range(seconds),
        )


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _range(numbers: Sequence[float]) -> ValueRange | None:
    if not len(numbers):
        return None
    return ValueRange(float(min(numbers)), float(np.median(numbers)), float(max(numbers)))
