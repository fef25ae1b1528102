"""Degrade images: shift, clutter, remove principal components."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

_PATCH = 8  # side of a patch of clutter in pixels


def move(images: np.ndarray, angles: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Rotate images (N, H, W) by radians (N,), shift by pixels (N, 2).

    What comes from outside an image is black.
    """
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
    """Overlay images with 8 × 8 patches of random other images.

    A pixel is the maximum of the image and its patches.

    Args:
        images: Images (N, H, W).
        pieces: Number of patches for each image.
        rng_of: Random generator of an image by its index.
    """
    cluttered = images.copy()
    room = np.array(images.shape[1:]) - _PATCH + 1
    for sample in range(len(images)):
        rng = rng_of(sample)
        sources = rng.integers(len(images), size=pieces)
        for source, (top, left, from_top, from_left) in zip(
            sources, rng.integers(np.tile(room, 2), size=(pieces, 4)), strict=True
        ):
            patch = cluttered[sample, top : top + _PATCH, left : left + _PATCH]
            np.maximum(patch, images[source, from_top : from_top + _PATCH, from_left : from_left + _PATCH], out=patch)
    return cluttered


def principal_components(images: np.ndarray, energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and leading principal components (K, D).

    The components have at least the fraction ``energy`` of the variance.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    if energy == 1:
        return mean, np.zeros((0, flat.shape[1]))
    variances, directions = np.linalg.eigh(np.cov(flat, rowvar=False, bias=True))
    variances = variances[::-1].clip(min=0)
    explained = np.cumsum(variances) / max(float(variances.sum()), np.finfo(np.float64).tiny)
    n_components = int(np.searchsorted(explained, energy)) + 1
    return mean, np.ascontiguousarray(directions[:, ::-1][:, :n_components].T)


def project(images: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Project images (N, H, W) on the components; unchanged without components."""
    if not len(components):
        return images
    centred = images.reshape(len(images), -1) - mean
    projected: np.ndarray = (mean + centred @ components.T @ components).astype(np.float32).reshape(images.shape)
    return projected
