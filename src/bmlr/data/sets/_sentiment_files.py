"""Contents of published files of text, vision and audio features."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmlr.data.sets._sentiment_classes import HUMOUR, SARCASM, SENTIMENT, SIMS, Scale
from bmlr.tables import format_count

MODALITIES = ("text", "vision", "audio")


@dataclasses.dataclass(frozen=True)
class PublishedFiles:
    """Files of one data set of MMSA, MulT or MultiBench.

    Attributes:
        names: Names of the files.
        widths: Widths of the vision and audio features.
        scale: What the scores are.
        folder: Folder in which its publisher has it.
        text: Width of the text features: BERT's 768 or GloVe's 300.
        other_widths: Widths of vision and audio where a file has others, by its name.
        shares_videos: Whether the published splits share videos.
    """

    names: tuple[str, ...]
    widths: dict[str, int]
    scale: Scale
    folder: str
    text: int = 768
    other_widths: Mapping[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    shares_videos: bool = False

    def widths_of(self, path: Path) -> dict[str, int]:
        """Widths of vision and audio in a file."""
        return self.other_widths.get(path.name, self.widths)


_MMSA = ("aligned_50.pkl", "unaligned_50.pkl")
_RAW = {"vision": 35, "audio": 74}  # FACET and COVAREP
_PUNCHLINE = {"vision": 371, "audio": 81}  # OpenFace and COVAREP, of MultiBench

PUBLISHED_FILES = {
    "mosi": PublishedFiles(
        (*_MMSA, "mosi_data.pkl", "mosi_data_noalign.pkl", "mosi_raw.pkl"),
        {"vision": 20, "audio": 5},
        SENTIMENT,
        "MOSI",
        other_widths={"mosi_raw.pkl": _RAW},
    ),
    "mosei": PublishedFiles(
        (*_MMSA, "mosei_senti_data.pkl", "mosei_senti_data_noalign.pkl", "mosei_raw.pkl"), _RAW, SENTIMENT, "MOSEI"
    ),
    "ch-sims": PublishedFiles(("unaligned_39.pkl",), {"vision": 709, "audio": 33}, SIMS, "SIMS", shares_videos=True),
    "ur-funny": PublishedFiles(("humor.pkl",), _PUNCHLINE, HUMOUR, "UR-FUNNY", text=300),
    "mustard": PublishedFiles(("sarcasm.pkl",), _PUNCHLINE, SARCASM, "MUSTARD", text=300),
}

NOT_FINITE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"NaN": np.isnan, "−∞": np.isneginf, "+∞": np.isposinf}
_CHUNK = 256  # samples that are converted at a time


def read_identities(values: Mapping[Any, Any], where: str) -> list[tuple[str, str]]:
    """Identifier and source video of each sample.

    The video is "" where the identifier does not name it.
    """
    if "id" not in values:
        raise ValueError(f"{where} should have 'id'. Found {sorted(map(str, values))}.")
    ids = values["id"]
    if not isinstance(ids, list | tuple | np.ndarray) or (isinstance(ids, np.ndarray) and ids.ndim == 0):
        raise ValueError(f"{where} should have a list or array 'id'. Found {type(ids).__name__}.")
    return [_identity(value) for value in ids]


def _identity(value: Any) -> tuple[str, str]:
    """Identifier and source video of one sample.

    Read are MMSA's ``video$_$clip``, MulT's fields (video, begin, end; text or bytes) and CMU's ``video[clip]``.
    """
    fields = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in fields]
    identity = "$_$".join(texts)
    video, separator, _ = identity.partition("$_$")
    bracket = re.fullmatch(r"(.*)\[[0-9]+\]", video)
    if bracket:
        return identity, bracket[1]
    return identity, video if separator else ""


def read_scores(values: Mapping[Any, Any], samples: int, where: str) -> np.ndarray:
    """Sentiment scores, shape (N,): MMSA's ``regression_labels`` or MulT's ``labels``."""
    name = next((name for name in ("regression_labels", "labels") if name in values), None)
    if name is None:
        raise ValueError(
            f"{where} should have 'regression_labels' (MMSA) or 'labels' (MulT). Found {sorted(map(str, values))}."
        )
    try:
        scores = np.asarray(values[name], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} should have numbers for '{name}': {error}") from error
    if len(scores) != samples:
        raise ValueError(f"{where} should have one of '{name}' for each of its {samples} 'id'. Found {len(scores)}.")
    if not np.isfinite(scores).all():
        sample = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{where}: '{name}' should be finite. Found {scores[sample]} for sample {sample}.")
    return scores


@dataclasses.dataclass
class _Report:
    """Counts of one modality.

    Attributes:
        replaced: Number of values that were NaN, −∞ and +∞.
        beyond: Number of time steps beyond the stated length.
        padding: Side of the padding.
    """

    replaced: np.ndarray
    beyond: int = 0
    padding: str = "nowhere"


def read_steps(
    splits: Mapping[str, Mapping[Any, Any]], name: str, sizes: Sequence[int]
) -> tuple[list[np.ndarray], _Report]:
    """Time steps of every sample of all splits, without padding."""
    report = _Report(np.zeros(len(NOT_FINITE), dtype=np.int64))
    trimmed: list[tuple[np.ndarray, int, int]] = []  # steps, number of zero steps before, number of all steps
    limits: list[int | None] = []
    for (where, values), size in zip(splits.items(), sizes, strict=True):
        array = _features(values, name, size, where)
        limits += _lengths(values, name, array.shape, where)
        for start in range(0, size, _CHUNK):
            chunk, replaced = clean_features(array[start : start + _CHUNK])
            report.replaced += replaced
            trimmed += [(*_trimmed(sample), len(sample)) for sample in chunk]
    if len({steps.shape[1] for steps, _, _ in trimmed}) > 1:
        raise ValueError(f"The splits of {next(iter(splits))} … should have one width of '{name}'.")
    before = sum(first for _, first, _ in trimmed)
    after = sum(total - first - len(steps) for steps, first, total in trimmed if len(steps))
    if before or after:
        report.padding = "in front" if before > after else "at the tail"
    result = []
    for (steps, first, total), limit in zip(trimmed, limits, strict=True):
        if limit is not None and limit < total:
            low, high = (total - limit, total) if report.padding == "in front" else (0, limit)
            kept = steps[max(low - first, 0) : max(high - first, 0)]
            report.beyond += int(steps.any(1).sum() - kept.any(1).sum())
            steps = _trimmed(kept)[0]  # noqa: PLW2901
        result.append(steps)
    return result, report


def _features(values: Mapping[Any, Any], name: str, samples: int, where: str) -> np.ndarray:
    array = values.get(name)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu" or not array.shape[2]:
        shape = f"shape {array.shape}, dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{where} should have an array '{name}' of numbers, shape (N, T, d). Found {shape}.")
    if len(array) != samples:
        raise ValueError(f"{where} should have one '{name}' for each of its {samples} 'id'. Found {len(array)}.")
    return array


def _lengths(values: Mapping[Any, Any], name: str, shape: tuple[int, ...], where: str) -> list[int | None]:
    """Stated length of each sample, or None."""
    samples, steps = shape[:2]
    stated = values.get(f"{name}_lengths")
    tokens = values.get("text_bert")
    if name == "text" and stated is None and isinstance(tokens, np.ndarray) and tokens.shape == (samples, 3, steps):
        attended = tokens[:, 1] != 0
        return [int(row.nonzero()[0][-1]) + 1 if row.any() else 0 for row in attended]
    if stated is None:
        return [None] * samples
    try:
        lengths = np.asarray(stated, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} should have numbers for '{name}_lengths': {error}") from error
    if len(lengths) != samples or not (np.isfinite(lengths).all() and (lengths >= 0).all()):
        raise ValueError(f"{where} should have {samples} '{name}_lengths' of at least 0. Found {len(lengths)}.")
    return [int(length) for length in lengths]


def clean_features(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy in float32 without NaN and infinity.

    Returns:
        The copy, with 0 in their place, and the numbers of NaN, −∞ and +∞.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        cleaned = values.astype(np.float32)
    counts = np.array([int(test(cleaned).sum()) for test in NOT_FINITE.values()])
    if counts.any():
        cleaned[~np.isfinite(cleaned)] = 0
    return cleaned, counts


def _trimmed(steps: np.ndarray) -> tuple[np.ndarray, int]:
    """Cut zero steps at both ends of (T, d).

    Returns:
        A copy of the other steps, and the number cut in front.
    """
    real = np.flatnonzero(steps.any(1))
    if not len(real):
        return steps[:0].copy(), 0
    return steps[real[0] : real[-1] + 1].copy(), int(real[0])


def read_sequence(path: Path, width: int) -> np.ndarray:
    """Features of a new sample, shape (T, d), cleaned."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        values = np.lib.format.open_memmap(path, mode="r")  # maps the file; reads no objects
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file: {error}") from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path} should be a .npy file of numbers. Found {values.dtype}.")
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise ValueError(f"{path} should have shape (T, {width}) with T at least 1. Found {values.shape}.")
    cleaned, counts = clean_features(values)
    if counts.any():
        replaced = format_count(int(counts.sum()), "value that is not finite was", "values that are not finite were")
        warnings.warn(f"{path}: {replaced} set to 0, as in training.", stacklevel=2)
    if not cleaned.any():
        raise ValueError(f"{path} holds zeros only. Leave out the file of a modality that the sample lacks.")
    return cleaned
