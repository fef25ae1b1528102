"""Equidistant Gaussian classes and random invertible maps."""

from __future__ import annotations

import math

import numpy as np
import torch


class CouplingMap:
    """A random invertible map of coupling layers.

    A rotation comes first and another after each layer.

    Args:
        rotations: One rotation (D, D) more than there are layers.
        waves: Of each layer, W (D − D // 2, D // 2) and φ (D − D // 2,).
    """

    def __init__(self, rotations: list[np.ndarray], waves: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.rotations = rotations
        self.waves = waves

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map x, shape (N, D)."""
        x = x @ self.rotations[0].T
        for parameters, rotation in zip(self.waves, self.rotations[1:], strict=True):
            a, b = np.split(x, [len(rotation) // 2], axis=1)
            x = (
                np.concatenate([a, (b + _wave(a, parameters)) / math.sqrt(2)], axis=1) @ rotation.T
            )  # keeps the variance near 1
        return x

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """Undo the map, shape (N, D)."""
        for parameters, rotation in zip(self.waves[::-1], self.rotations[:0:-1], strict=True):
            a, b = np.split(x @ rotation, [len(rotation) // 2], axis=1)
            x = np.concatenate([a, b * math.sqrt(2) - _wave(a, parameters)], axis=1)
        latents: np.ndarray = x @ self.rotations[0]
        return latents


def _wave(a: np.ndarray, parameters: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """√2 sin(W a + φ), of variance near 1."""
    weights, phases = parameters
    values: np.ndarray = np.sin(a @ weights.T + phases)
    values *= math.sqrt(2)
    return values


def random_rotation(rng: np.random.Generator, dimensions: int) -> np.ndarray:
    """Random orthogonal matrix (D, D), of uniform distribution."""
    q, r = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))
    rotation: np.ndarray = q * np.sign(np.diag(r))  # else the signs depend on the LAPACK in use
    return rotation


def random_waves(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Random unit vectors (outputs, inputs) and phases (outputs,)."""
    directions = rng.standard_normal((outputs, inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions, rng.uniform(0, 2 * np.pi, outputs)


def simplex(vertices: int) -> np.ndarray:
    """Vertices (C, C − 1) of a regular simplex with edge 1."""
    corners = np.zeros((vertices, vertices - 1))
    for k in range(1, vertices):  # column k of Helmert's basis, orthogonal to (1, …, 1)
        corners[:k, k - 1] = 1
        corners[k, k - 1] = -k
        corners[:, k - 1] /= math.sqrt(2 * k * (k + 1))
    return corners


def simplex_accuracy(separation: float, num_classes: int) -> float:
    """Bayes accuracy of equally frequent Gaussians of unit variance with equidistant means.

    Example:
        >>> round(simplex_accuracy(2.0, 2), 6)  # of two classes it is Φ(separation / 2)
        0.841345
    """
    # For a smooth, decaying integrand the trapezoidal rule converges faster than any power of its step.
    t = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    density = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    shifted = torch.special.ndtr(t + separation / math.sqrt(2))
    return min(1.0, float(torch.trapezoid(density * shifted ** (num_classes - 1), t)))


def separation_of(accuracy: float, num_classes: int) -> float:
    """Inverse of :func:`simplex_accuracy`: distance of the means, by bisection.

    Example:
        >>> round(separation_of(simplex_accuracy(2.0, 5), 5), 6)
        2.0
    """
    low, high = 0.0, 20.0
    if accuracy <= 1 / num_classes:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if simplex_accuracy(middle, num_classes) < accuracy else (low, middle)
    return high
