"""Contact sheet: samples of each class, drawn in all modalities."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bmlr._checks import check_choice, check_integer
from bmlr.data._base import SPLITS, Modality, MultimodalData, SplitName
from bmlr.data.inspection._batches import (
    draw_indices,
    iterate_batches,
    join_batches,
    present_mask,
    store_of,
    written_texts,
)
from bmlr.data.transforms._frames import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CLASSES = 40  # rows

_MAX_FRAMES = 4  # of a video

_CELL, _GAP, _BETWEEN = 0.9, 0.06, 0.3  # height of a cell, space between cells and between modalities, in inches


def contact_sheet(data: MultimodalData, *, split: SplitName = "train", per_class: int = 4, seed: int = 0) -> Figure:
    """Draw samples of each class in all modalities, a row per class, label or fifth of the numbers.

    The order of the samples is the same in every modality. Images and frames are in their colours, spectrograms with
    low frequencies below, sequences with time to the right and a line per feature, vectors as curves, texts as written,
    or their tokens as stripes. All samples of a
    modality share one scale. The first 40 classes are shown, and up to four frames of a video.

    Args:
        data: The data set.
        split: Split the samples are taken from.
        per_class: Samples per class, drawn at random.
        seed: Seed of the draw.

    Raises:
        FileNotFoundError: If a file of the data set is missing.
        ValueError: If an argument is wrong or the data set cannot be read.
    """
    check_choice("split", split, SPLITS)
    check_integer("per_class", per_class, 1)
    data.prepare()
    samples = data.split(split)
    rows = _rows(data, samples.targets.numpy())
    shown = list(rows)[:_MAX_CLASSES]
    picks = {name: draw_indices(rows[name], per_class, seed) for name in shown}
    positions = np.concatenate(list(picks.values()))
    if not len(positions):
        raise ValueError(f"Split '{split}' of '{data.name}' should hold samples. It is empty.")
    batches = list(iterate_batches(data, split, samples, positions))
    counts = {name: len(rows[name]) for name in picks}
    sheet = _Sheet(data, picks, counts, normalised=store_of(samples) is not None)
    for modality, form in data.modalities.items():
        present = np.concatenate([present_mask(batch, modality) for batch in batches])
        texts = written_texts(samples, modality, positions.tolist())
        if texts is not None:
            sheet.draw_texts(modality, form, texts, present)
        else:
            sheet.draw(modality, form, join_batches([batch.inputs[modality].numpy() for batch in batches]), present)
    classes = f", first {len(shown)} of {len(rows)} classes" if len(shown) < len(rows) else ""
    sheet.title(f"{data.name}, {data.protocol} protocol, {split} split: {len(samples)} samples{classes}")
    return sheet.figure


def _rows(data: MultimodalData, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the samples of each row of a sheet, by the row's name."""
    if targets.ndim == 2 and data.classes:
        return {name: np.flatnonzero(targets[:, label]) for label, name in enumerate(data.classes)}
    if data.classes:
        return {name: np.flatnonzero(targets == label) for label, name in enumerate(data.classes)}
    order = np.argsort(targets.reshape(len(targets), -1)[:, 0], kind="stable")
    fifths = [fifth for fifth in np.array_split(order, 5) if len(fifth)]
    names = [f"{targets[fifth].min():.3g} … {targets[fifth].max():.3g}" for fifth in fifths]
    return {name: np.sort(fifth) for name, fifth in zip(names, fifths, strict=True)}


class _Sheet:
    """A figure with a row per class, laid out in inches.

    Each modality has a column per sample.

    Args:
        data: The data set.
        picks: Positions of the samples of each row, by its name.
        counts: Number of samples of each row.
        normalised: Colours are known to be normalised by ImageNet's mean and standard deviation; otherwise those
            outside [0, 1] are.
    """

    def __init__(
        self, data: MultimodalData, picks: Mapping[str, np.ndarray], counts: Mapping[str, int], *, normalised: bool
    ) -> None:
        from matplotlib.figure import Figure

        self.picks, self.normalised = picks, normalised
        self.columns = max(len(indices) for indices in picks.values())
        names = {name: _plain(name, 24) for name in picks}
        self.label_width = 0.3 + max(0.5, 0.085 * max(map(len, names.values())))
        widths = {name: _CELL * _aspect(form) for name, form in data.modalities.items()}
        self.left: dict[str, tuple[float, float]] = {}  # where a modality begins, and the width of a cell
        right = self.label_width
        for name, width in widths.items():
            self.left[name] = (right, width)
            right += self.columns * (width + _GAP) - _GAP + _BETWEEN
        self.width = max(right - _BETWEEN + 0.15, 5.0)
        self.top = 0.75
        self.height = self.top + len(picks) * (_CELL + _GAP) + 0.1
        self.figure = Figure(figsize=(self.width, self.height), dpi=100, facecolor="white")
        self._text(self.label_width - 0.12, self.height - 0.53, "class", ha="right", va="center", size=7)
        self._text(
            self.label_width - 0.12, self.height - 0.65, "samples", ha="right", va="center", size=6, color="#777777"
        )
        for row, (label, name) in enumerate(names.items()):
            middle = self.height - self.top - row * (_CELL + _GAP) - _CELL / 2
            self._text(self.label_width - 0.12, middle + 0.02, name, ha="right", va="bottom", size=9)
            count = f"{counts[label]}"
            self._text(self.label_width - 0.12, middle - 0.05, count, ha="right", va="top", size=7, color="#777777")

    def title(self, text: str) -> None:
        """Write the title."""
        self._text(0.15, self.height - 0.22, _plain(text), ha="left", va="center", size=10, weight="bold")

    def draw(self, name: str, form: Modality, values: np.ndarray, present: np.ndarray) -> None:
        """Draw all samples of a modality, in the order of the picks."""
        self._draw(name, form, list(_scaled(form, values, present, normalised=self.normalised)), present)

    def draw_texts(self, name: str, form: Modality, texts: Sequence[str], present: np.ndarray) -> None:
        """Write the beginnings of texts, in the order of the picks."""
        self._draw(name, form, texts, present)

    def _draw(self, name: str, form: Modality, shown: Sequence[np.ndarray | str], present: np.ndarray) -> None:
        start, width = self.left[name]
        end = start + self.columns * (width + _GAP) - _GAP
        shape = " × ".join(map(str, form.shape))
        self._text(
            (start + end) / 2,
            self.height - 0.55,
            f"{_plain(name)} ({form.kind}, {shape})",
            ha="center",
            va="center",
            size=8,
        )
        position = 0
        for row, indices in enumerate(self.picks.values()):
            for column in range(len(indices)):
                box = (start + column * (width + _GAP), self.height - self.top - row * (_CELL + _GAP) - _CELL)
                axes = self.figure.add_axes(
                    (box[0] / self.width, box[1] / self.height, width / self.width, _CELL / self.height)
                )
                _draw_cell(axes, form, shown[position] if present[position] else None)
                position += 1

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / self.width, y / self.height, text, **style)


def _plain(name: str, length: int | None = None) -> str:
    from bmlr.figures.style import plain_text  # which needs pandas

    return plain_text(name, length)


def _aspect(form: Modality) -> float:
    """Width of a cell in heights."""
    if form.kind == "frames":
        return min(form.shape[0], _MAX_FRAMES) * form.shape[3] / form.shape[2]
    if form.kind in {"image", "spectrogram"}:
        return float(np.clip(form.shape[2] / form.shape[1], 0.5, 3))
    return 1.6


def _scaled(form: Modality, values: np.ndarray, present: np.ndarray, *, normalised: bool) -> np.ndarray:
    """Values scaled to [0, 1].

    Colours stay as they are; other values are scaled between the 0.5 % and 99.5 % percentiles.
    """
    images = form.kind in {"image", "frames"}
    if images and values.shape[-3] == 3:
        colours = _colours(values, present, normalised=normalised)
        if colours is not None:
            return colours
    finite = values[present]
    finite = finite[np.isfinite(finite)]
    if form.kind == "sequence":
        finite = finite[finite != 0]  # padding would hide the rest
    low, high = np.percentile(finite, (0.5, 99.5)) if len(finite) else (0.0, 1.0)
    if form.kind == "vector":
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    scaled: np.ndarray = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    if form.kind == "sequence":
        scaled[~(values != 0).any(-1)] = np.nan
    return scaled


def _colours(values: np.ndarray, present: np.ndarray, *, normalised: bool) -> np.ndarray | None:
    """Colours (…, 3, H, W) in [0, 1]; None for other values.

    Values normalised by ImageNet's mean and standard deviation are shifted back.
    """
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    original = values * std + mean
    for colours in (original,) if normalised else (values, original):
        seen = colours[present]
        if len(seen) and seen.min() >= -1e-3 and seen.max() <= 1 + 1e-3:
            clipped: np.ndarray = np.clip(colours, 0, 1)
            return clipped
    return None


def _draw_cell(axes: Axes, form: Modality, values: np.ndarray | str | None) -> None:
    """Draw one input, or a grey cell for None."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="#888888")
    if values is None:
        axes.set_facecolor("#f2f2f2")
        axes.text(0.5, 0.5, "missing", ha="center", va="center", size=7, color="#888888", transform=axes.transAxes)
        return
    if isinstance(values, str):
        lines = textwrap.wrap(_plain(values), 24)[:6]
        axes.text(0.03, 0.95, "\n".join(lines), ha="left", va="top", size=5, transform=axes.transAxes)
        return
    style: dict[str, Any] = {"aspect": "auto", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    if form.kind == "vector":
        axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(-0.05, 1.05))
        axes.plot(values, color="#0072B2", linewidth=0.8, marker="." if len(values) <= 32 else None, markersize=3)
    elif form.kind == "text":
        axes.imshow(values[None], cmap="viridis", **style)
    elif form.kind == "sequence":
        axes.imshow(values.T, cmap="viridis", origin="lower", **style)
    elif form.kind == "spectrogram":
        axes.imshow(values[0], cmap="magma", origin="lower", **style)
    else:
        frames = values[None] if form.kind == "image" else values[:_MAX_FRAMES]
        strip = np.concatenate(list(frames.transpose(0, 2, 3, 1)), axis=1)
        axes.imshow(strip if strip.shape[2] == 3 else strip[..., 0], cmap="gray", **style)
