"""Honest splits: splits that share no group and have the classes in like proportion, as far as the groups allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import SplitName


def split_by_group(
    groups: Sequence[str], targets: np.ndarray, *, val_fraction: float, test_fraction: float, seed: int
) -> dict[SplitName, np.ndarray]:
    """Positions of the samples of each split; no group is in two.

    Groups come in an order drawn from ``seed``, large ones first. Each goes to the split that misses it most: the one
    that brings the sum over splits p and classes c of (n_pc − s_p n_c)² / (s_p n_c) down furthest, where n_c is the
    number of samples of class c, n_pc that of them which split p has got, and s_p its fraction.

    Args:
        groups: Group of each sample.
        targets: Class index of each sample, shape (N,).
        val_fraction: Fraction of the validation split; 0 leaves it empty.
        test_fraction: Fraction of the test split; 0 leaves it empty.
        seed: Seed of the order.

    Raises:
        ValueError: If a fraction is out of its range, or there are too few groups for all splits.

    Example:
        >>> import numpy as np
        >>> groups, targets = list("aabbccdd"), np.array([0, 1] * 4)
        >>> splits = split_by_group(groups, targets, val_fraction=0.25, test_fraction=0.25, seed=0)
        >>> {name: len(rows) for name, rows in splits.items()}
        {'train': 4, 'val': 2, 'test': 2}
    """
    fractions: dict[SplitName, float] = {
        "train": 1 - val_fraction - test_fraction,
        "val": val_fraction,
        "test": test_fraction,
    }
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and fractions["train"] > 0):
        raise ValueError(
            "Parameters `val_fraction` and `test_fraction` should be at least 0 and together below 1. "
            f"Found `val_fraction = {val_fraction}`, `test_fraction = {test_fraction}`."
        )
    check_integer("seed", seed, 0)
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < len(wanted):
        raise ValueError(f"The splits {', '.join(wanted)} need at least {len(wanted)} groups. Found {len(names)}.")
    counts = np.zeros((len(names), int(np.max(targets)) + 1))
    np.add.at(counts, (members, targets), 1)
    split_of = _assign(counts, np.array([fractions[name] for name in wanted]), np.random.default_rng(seed))
    return {
        name: np.flatnonzero(split_of[members] == wanted.index(name)) if name in wanted else np.zeros(0, np.int64)
        for name in fractions
    }


def _assign(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of each group, from its number of samples per class (groups, classes)."""
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    goal = fractions[:, None] * np.maximum(counts.sum(0), 1)  # a class number without samples divides by zero otherwise
    missing = goal.copy()
    split_of = np.zeros(len(counts), dtype=np.int64)
    for group in order:
        # (missing − counts)² − missing², the change of the sum.
        change = ((counts[group] ** 2 - 2 * missing * counts[group]) / goal).sum(1)
        split_of[group] = int(np.argmin(change))
        missing[split_of[group]] -= counts[group]
    # A split may stay empty where groups are few: it takes the smallest of the largest.
    for split in range(len(fractions)):
        if not (split_of == split).any():
            largest = np.bincount(split_of, minlength=len(fractions)).argmax()
            candidates = np.flatnonzero(split_of == largest)
            split_of[candidates[np.argmin(counts[candidates].sum(1))]] = split
    return split_of
