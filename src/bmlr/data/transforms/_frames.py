"""Random crops and flips of video frames, seeded per sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_integer, check_unit_interval
from bmlr.batch import empty_for_batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

_ATTEMPTS = 10  # at a crop that fits, as in torchvision


class Crop(NamedTuple):
    """A rectangle in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool


def augment_frames(
    frames: Tensor,
    size: int,
    seeds: Tensor | None,
    *,
    train: bool,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    r"""Crop, flip, resize and normalise frames.

    In evaluation frames are not cropped or flipped.

    In training the crop has the distribution of torchvision's ``RandomResizedCrop``, followed by
    ``RandomHorizontalFlip``: the fraction of the area is uniform in ``scale`` and the ratio of width to height is
    log-uniform in ``ratio``; sides are rounded to pixels; a crop that does not fit is drawn again, ten times at most,
    then the largest central crop with a ratio in ``ratio`` is taken; the position is uniform. All frames of a sample
    share one crop and one flip. In evaluation the whole frame is resized to (size, size), whatever its ratio.

    Resizing is the antialiased bilinear filter of ``torch.nn.functional.interpolate``, in float32. Results are within
    one grey level (1/255, before the normalisation) of PIL's, which rounds to whole levels after each axis. Then
    values in [0, 1] are shifted by ``mean`` and divided by ``std``.

    A sample's crop and flip depend on its seed and the frames' size alone, on every device. Each sample is resized by
    itself, so that its result is the same, bit for bit, in any batch and at any position in it.

    Args:
        frames: Frames, uint8 or float32, shape (B, T, H, W, C). Those of type uint8 are divided by 255.
        size: Height and width of the result.
        seeds: Seed of each sample, int64, shape (B,), best on the CPU; use another for every epoch. None in
            evaluation.
        train: Crop and flip at random.
        scale: Smallest and largest fraction of the area, in (0, 1].
        ratio: Smallest and largest ratio of width to height.
        flip: Probability that a sample is mirrored.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        Shape (B, T, C, size, size), float32, on the device of ``frames``.

    Raises:
        ValueError: If a tensor has another type or shape, a parameter is out of its range, or ``seeds`` is None in
            training.

    Example:
        >>> import torch
        >>> frames = torch.randint(256, (2, 3, 48, 64, 3), dtype=torch.uint8)
        >>> augment_frames(frames, 32, torch.tensor([7, 8]), train=True).shape
        torch.Size([2, 3, 3, 32, 32])
    """
    _check_frames(frames)
    check_integer("size", size, 1)
    batch_size, _, height, width, _ = frames.shape
    if train:
        crops = sample_crops(_checked_seeds(seeds, batch_size), height, width, scale=scale, ratio=ratio, flip=flip)
    else:
        crops = [_whole(height, width)] * batch_size
    return resize_crops(frames, crops, size, mean=mean, std=std)


def choose_crops(seeds: Tensor, height: int, width: int, *, train: bool, flip: float) -> list[Crop]:
    """Crop of each sample by :func:`sample_crops`; in evaluation the whole frame."""
    return sample_crops(seeds, height, width, flip=flip) if train else [_whole(height, width)] * len(seeds)


def resize_crops(
    frames: Tensor, crops: Sequence[Crop], size: int, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Cut, mirror, resize and normalise frames; see :func:`augment_frames`.

    The device is not waited for.

    Raises:
        ValueError: If a tensor has another type or shape, or a parameter is out of its range.
    """
    _check_frames(frames)
    batch_size, n_frames, _, _, channels = frames.shape
    shift, divisor = (
        _per_channel(u, tuple(values), channels, frames.device) for u, values in (("mean", mean), ("std", std))
    )
    if min(std) <= 0:
        raise ValueError(f"Parameter `std` should hold positive numbers. Found `std = {tuple(std)}`.")
    resized = empty_for_batch((batch_size, n_frames, channels, size, size), torch.float32, frames.device)
    for sample, crop in enumerate(crops):
        cut = frames[sample, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        # One layout in memory: interpolate picks its kernel by the strides, and the kernels round differently.
        cut = cut.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        scaled = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)
        resized[sample] = scaled.flip(3) if crop.flipped else scaled
    if frames.dtype == torch.uint8:
        resized.div_(255)
    return resized.sub_(shift).div_(divisor)


def _whole(height: int, width: int) -> Crop:
    return Crop(0, 0, height, width, flipped=False)


def sample_crops(
    seeds: Tensor,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> list[Crop]:
    """Draw a crop and a flip for each seed; see :func:`augment_frames`.

    Raises:
        ValueError: If a parameter is out of its range.
    """
    _check_range("scale", scale, 1.0)
    _check_range("ratio", ratio, math.inf)
    check_unit_interval("flip", flip)
    return [_draw_crop(seed, height, width, scale, ratio, flip) for seed in seeds.tolist()]


def _draw_crop(
    seed: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], flip: float
) -> Crop:
    # Not torch's generator: on the CPU it ignores the upper half of a 64-bit seed.
    rng = np.random.default_rng(seed % 2**64)
    flipped = rng.random() < flip
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return Crop(top, left, crop_height, crop_width, flipped)
    return Crop(*_central_crop(height, width, ratio), flipped)


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest central crop.

    Its ratio of width to height is in the range.
    """
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _check_frames(frames: Tensor) -> None:
    if frames.dtype not in {torch.uint8, torch.float32}:
        raise ValueError(f"`frames` should be uint8, from 0 to 255, or float32. Found dtype {frames.dtype}.")
    if frames.ndim != 5 or 0 in frames.shape[1:]:
        raise ValueError(
            f"`frames` should have shape (B, T, H, W, C), all but B at least 1. Found {tuple(frames.shape)}."
        )


def _checked_seeds(seeds: Tensor | None, batch_size: int) -> Tensor:
    if seeds is None:
        raise ValueError("`seeds` should be given where `train` is true. Found None.")
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (batch_size,):
        raise ValueError(
            f"`seeds` should be int64 of shape ({batch_size},), one for each sample. "
            f"Found dtype {seeds.dtype}, shape {tuple(seeds.shape)}."
        )
    return seeds


def _check_range(name: str, bounds: tuple[float, float], limit: float) -> None:
    if not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= limit and math.isfinite(bounds[1])):
        bound = f", at most {limit:g}" if math.isfinite(limit) else ""
        raise ValueError(
            f"Parameter `{name}` should be two positive finite numbers, the smaller first{bound}. "
            f"Found `{name} = {tuple(bounds)}`."
        )


@functools.lru_cache(maxsize=64)  # a copy to a GPU would wait for it in every batch
def _per_channel(name: str, values: tuple[float, ...], channels: int, device: torch.device) -> Tensor:
    if len(values) != channels or not all(math.isfinite(value) for value in values):
        raise ValueError(f"Parameter `{name}` should hold {channels} finite numbers. Found `{name} = {values}`.")
    return torch.tensor(values, dtype=torch.float32, device=device).view(channels, 1, 1)
