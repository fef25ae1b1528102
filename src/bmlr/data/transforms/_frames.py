"""Random crops and flips of video frames, batched on the frames' device, seeded per sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bmlr._checks import check_integer, check_unit_interval

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in [0, 1]


IMAGENET_STD = (0.229, 0.224, 0.225)


_ATTEMPTS = 10  # at a crop that fits


_DRAWS = 4 * _ATTEMPTS + 1  # area, ratio, top and left of every attempt, and the flip


# SplitMix64 (Steele, Lea and Flood, 2014), its constants as signed integers.
_GAMMA, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


@dataclasses.dataclass(frozen=True)
class Crops:
    """A rectangle of every sample, in pixels, and whether it is mirrored; shape (B,) each, int64 and bool."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor


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
    r"""Frames as a network sees them: cropped at random and resized in training, resized only in evaluation.

    In training the crop has the distribution of torchvision's ``RandomResizedCrop``, followed by
    ``RandomHorizontalFlip``: the share of the area is uniform in ``scale`` and the ratio of width to height is
    log-uniform in ``ratio``; sides are rounded to pixels; a crop that does not fit is drawn again, ten times at most,
    then the largest central crop with a ratio in ``ratio`` is taken; the place is uniform. One crop and one flip hold
    for all frames of a sample. In evaluation the whole frame is resized to (size, size), whatever its ratio.

    Resizing is PIL's antialiased bilinear filter: along each axis a crop of n pixels is seen through triangles of
    half width max(1, n / size) pixels, cut at the border of the crop. It is computed in float32 and not rounded to
    whole grey levels between the axes and at the end, so that results are within one level (1/255, before the
    normalisation) of PIL's. Then values in [0, 1] are shifted by ``mean`` and divided by ``std``.

    A sample's crop and flip depend on its seed and the frames' size alone: draw j of seed s is

    .. math::
        u_j(s) = 2^{-53} \left\lfloor 2^{-11}\, m\big(m(s) + (j + 1)\,\gamma \bmod 2^{64}\big) \right\rfloor,

    with the mixing function m and γ of SplitMix64. Attempt a (from 0) takes draws 4a for the area, 4a + 1 for the
    ratio, 4a + 2 for the top and 4a + 3 for the left; draw 40 is the flip. Pixels are sums in one order whatever the
    batch. The result for a sample is therefore the same, bit for bit, in any batch and at any place in it.

    Args:
        frames: Frames, uint8, shape (B, T, H, W, 3).
        size: Height and width of the result.
        seeds: Seed of each sample, int64, shape (B,); make another for every epoch. Draws are made where it lies:
            on the frames' device nothing has to wait, and on the CPU it is as good. None in evaluation.
        train: Crop and flip at random.
        scale: Smallest and largest share of the area, in (0, 1].
        ratio: Smallest and largest ratio of width to height.
        flip: Probability that a sample is mirrored.
        mean: Mean of each colour.
        std: Standard deviation of each colour.

    Returns:
        Shape (B, T, 3, size, size), float32, on the device of ``frames``.

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
    shift, factor = (_per_channel(name, values, frames.device) for name, values in (("mean", mean), ("std", std)))
    if min(std) <= 0:
        raise ValueError(f"Parameter `std` should hold positive numbers. Found `std = {tuple(std)}`.")
    batch_size, _, height, width, _ = frames.shape
    if train:
        crops = sample_crops(_checked_seeds(seeds, batch_size), height, width, scale=scale, ratio=ratio, flip=flip)
    else:
        crops = _whole(batch_size, height, width)
    rows, row_weights = _taps(crops.top, crops.height, size, height)
    columns, column_weights = _taps(crops.left, crops.width, size, width)
    mirror = crops.flipped[:, None, None]
    columns = torch.where(mirror, columns.flip(1), columns)
    column_weights = torch.where(mirror, column_weights.flip(1), column_weights)

    # Each axis is resized as the rows of a matrix, which copy fastest: (B, T, H, W · 3), then (B, T, W, 3 · size).
    resized = _resize(frames.flatten(3), rows, row_weights).unflatten(3, (width, 3)).permute(0, 1, 3, 4, 2)
    resized = _resize(resized.flatten(3), columns, column_weights).unflatten(3, (3, size)).permute(0, 1, 3, 4, 2)
    normalised: Tensor = resized.div(255).sub_(shift).div_(factor)
    return normalised.contiguous()


def sample_crops(
    seeds: Tensor,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Crops:
    """Random crops of images of (height, width) and flips; see :func:`augment_frames`.

    Raises:
        ValueError: If a parameter is out of its range.
    """
    _check_range("scale", scale, 1.0)
    _check_range("ratio", ratio, math.inf)
    check_unit_interval("flip", flip)
    draws = uniform(seeds, _DRAWS)
    area, shape, down, right = draws[:, :-1].unflatten(1, (_ATTEMPTS, 4)).unbind(2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    shape = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
    widths = torch.sqrt(area * shape).round().long()
    heights = torch.sqrt(area / shape).round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = (down * (height - heights + 1)).floor().long()
    lefts = (right * (width - widths + 1)).floor().long()

    first = fits.int().argmax(1, keepdim=True)  # of equal values the first
    central = _central_crop(height, width, ratio)
    top, left, cut_height, cut_width = (
        torch.where(fits.any(1), attempts.gather(1, first).squeeze(1), fallback)
        for attempts, fallback in zip((tops, lefts, heights, widths), central, strict=True)
    )
    return Crops(top, left, cut_height, cut_width, draws[:, -1] < flip)


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) from seeds (B,), shape (B, count), float64; the first do not depend on ``count``.

    Example:
        >>> import torch
        >>> uniform(torch.tensor([0, 1]), 2).shape
        torch.Size([2, 2])
    """
    if seeds.device.type == "mps":
        seeds = seeds.cpu()  # there is no float64
    counters = torch.arange(1, count + 1, device=seeds.device) * _GAMMA
    return _shift(_mix(_mix(seeds)[:, None] + counters), 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """The mixing function of SplitMix64, on int64 as if it were unsigned: products wrap around."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros coming in; torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest central crop with a ratio in the range."""
    cut_height, cut_width = height, width
    if width / height < ratio[0]:
        cut_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        cut_width = round(height * ratio[1])
    return (height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width


def _whole(batch_size: int, height: int, width: int) -> Crops:
    zeros = torch.zeros(batch_size, dtype=torch.int64)
    return Crops(zeros, zeros, zeros + height, zeros + width, zeros.bool())


def _taps(start: Tensor, length: Tensor, size: int, limit: int) -> tuple[Tensor, Tensor]:
    """Which pixels each pixel of the result is a mean of, and how much each counts.

    Args:
        start: First pixel of the crop, shape (B,).
        length: Number of pixels of the crop, shape (B,).
        size: Number of pixels of the result.
        limit: Largest possible ``length``; fixes the number of taps K without a look at the values.

    Returns:
        Positions, int64, and weights that sum to 1, float64, shape (B, size, K) each.
    """
    taps = math.ceil(2 * max(1.0, limit / size))
    step = length.double() / size
    reach = step.clamp(min=1)[:, None, None]
    centres = ((torch.arange(size, device=start.device) + 0.5) * step[:, None])[:, :, None]
    positions = (centres - reach + 0.5).floor().long() + torch.arange(taps, device=start.device)
    weights = (1 - (positions + 0.5 - centres).abs() / reach).clamp(min=0)
    last = (length - 1)[:, None, None]
    weights = weights.masked_fill((positions < 0) | (positions > last), 0)
    positions = positions.clamp(min=0).minimum(last) + start[:, None, None]
    return positions, weights / weights.sum(2, keepdim=True)


def _resize(x: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of rows: (B, T, N, D) to (B, T, size, D), float32.

    Products and sums are operations of their own in a fixed order: a matrix product, or a fused multiplication and
    addition, is rounded in a way that depends on the batch and the device.
    """
    batch_size, frames, length, _ = x.shape
    positions = positions.to(x.device, non_blocking=True)
    weights = weights.float().to(x.device, non_blocking=True)
    offsets = (torch.arange(batch_size * frames, device=x.device) * length).view(batch_size, frames, 1)
    rows = x.reshape(batch_size * frames * length, x.shape[3])
    total: Tensor | None = None
    for tap in range(positions.shape[2]):
        index = (offsets + positions[:, None, :, tap]).flatten()
        values = rows.index_select(0, index).float().view(batch_size, frames, positions.shape[1], x.shape[3])
        values *= weights[:, None, :, tap, None]
        total = values if total is None else total.add_(values)
    if total is None:
        raise AssertionError("There is at least one tap.")
    return total


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8:
        raise ValueError(f"`frames` should be uint8, from 0 to 255. Found dtype {frames.dtype}.")
    if frames.ndim != 5 or frames.shape[4] != 3 or 0 in frames.shape[1:]:
        raise ValueError(
            f"`frames` should have shape (B, T, H, W, 3), T, H and W at least 1. Found {tuple(frames.shape)}."
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
        most = f", at most {limit:g}" if math.isfinite(limit) else ""
        raise ValueError(
            f"Parameter `{name}` should be two positive finite numbers, the smaller first{most}. "
            f"Found `{name} = {tuple(bounds)}`."
        )


def _per_channel(name: str, values: Sequence[float], device: torch.device) -> Tensor:
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"Parameter `{name}` should hold 3 finite numbers. Found `{name} = {tuple(values)}`.")
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
