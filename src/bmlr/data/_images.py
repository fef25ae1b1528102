"""Images: distortions, principal components, and reading pictures of any common format."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

_PATCH = 8  # side of a piece of clutter in pixels
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # 8 bits per channel at most: what converts to grey without loss
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # pillow's others include PostScript, which is code
_MOST_PIXELS = 50_000_000


def move(images: np.ndarray, angles: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Images (N, H, W) rotated by angles in radians (N,) and shifted by pixels (N, 2), black outside."""
    cos, sin = np.cos(angles), np.sin(angles)
    by_half = 2 * shifts / np.array([images.shape[2], images.shape[1]])  # in units of the grid, which spans [−1, 1]
    theta = np.stack([np.stack([cos, -sin, by_half[:, 0]], 1), np.stack([sin, cos, by_half[:, 1]], 1)], 1)
    inputs = torch.from_numpy(images)[:, None]
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta.astype(np.float32)), list(inputs.shape), align_corners=False
    )
    moved: np.ndarray = torch.nn.functional.grid_sample(inputs, grid, align_corners=False)[:, 0].numpy()
    return moved


def clutter(images: np.ndarray, pieces: int, rng_of: Callable[[int], np.random.Generator]) -> np.ndarray:
    """Images (N, H, W) with pieces of 8 × 8 pixels of random others laid over each at random places, by the maximum.

    Args:
        images: Images (N, H, W).
        pieces: Number of pieces for each image.
        rng_of: Random generator of an image by its position.
    """
    cluttered = images.copy()
    room = np.array(images.shape[1:]) - _PATCH + 1
    for sample in range(len(images)):
        rng = rng_of(sample)
        others = rng.integers(len(images), size=pieces)
        for other, (top, left, from_top, from_left) in zip(
            others, rng.integers(np.tile(room, 2), size=(pieces, 4)), strict=True
        ):
            place = cluttered[sample, top : top + _PATCH, left : left + _PATCH]
            np.maximum(place, images[other, from_top : from_top + _PATCH, from_left : from_left + _PATCH], out=place)
    return cluttered


def principal_components(images: np.ndarray, energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and fewest leading components (K, D) that hold at least a share ``energy`` of the variance."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    if energy == 1:
        return mean, np.zeros((0, flat.shape[1]))
    variances, directions = np.linalg.eigh(np.cov(flat, rowvar=False, bias=True))
    variances = variances[::-1].clip(min=0)
    share = np.cumsum(variances) / max(float(variances.sum()), np.finfo(np.float64).tiny)
    kept = int(np.searchsorted(share, energy)) + 1
    return mean, np.ascontiguousarray(directions[:, ::-1][:, :kept].T)


def project(images: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Images (N, H, W) projected on the components; as they are where there are none."""
    if not len(components):
        return images
    centred = images.reshape(len(images), -1) - mean
    projected: np.ndarray = (mean + centred @ components.T @ components).astype(np.float32).reshape(images.shape)
    return projected


def read_picture(path: Path, height: int, width: int) -> np.ndarray:
    """A picture in grey, resized to (height, width), float32 in [0, 1]; transparent pixels count as black.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as a picture of 8 bits per channel; the message names it.
    """
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pillow reads some damaged files with no more than a warning
            with Image.open(path, formats=_FORMATS) as image:
                complaint = _complaint(image)
                if complaint is None:
                    opaque = Image.new("RGBA", image.size, "black")
                    opaque.alpha_composite(image.convert("RGBA"))
                    grey = opaque.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's are of a dozen kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if complaint is not None:
        raise ValueError(f"{path} cannot be read as an image: {complaint}.")
    return np.asarray(grey, dtype=np.float32) / 255


def _complaint(image: Image.Image) -> str | None:
    """What is wrong with a picture that has been opened but not decoded yet."""
    if image.width * image.height > _MOST_PIXELS:
        return f"it has {image.width} × {image.height} pixels, at most {_MOST_PIXELS} are read"
    if image.mode not in _MODES:
        return f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits of grey"
    return None
