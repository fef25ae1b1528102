"""Splits without a shared group, with the classes in proportion."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import SPLITS, SplitName


def split_by_group(
    groups: Sequence[str], targets: np.ndarray, *, val_fraction: float, test_fraction: float, seed: int
) -> dict[SplitName, np.ndarray]:
    """Split samples by group; no group is in two splits.

    A greedy assignment, groups in random order, large ones first. Each goes to the split that lowers most the sum over
    splits p and classes c of (n_pc − f_p n_c)² / (f_p n_c). Here n_c is the number of samples of class c, n_pc the
    number already in split p, and f_p the fraction of split p. scikit-learn's ``StratifiedGroupKFold`` keeps the class
    fractions less well on groups of very different size.

    Args:
        groups: Group of each sample.
        targets: Class index of each sample, shape (N,); zeros and ones of several labels, shape (N, L); or numbers,
            shape (N,), whose fifths by rank count as classes.
        val_fraction: Fraction of the validation split; 0 leaves it empty.
        test_fraction: Fraction of the test split; 0 leaves it empty.
        seed: Seed of the order.

    Returns:
        Indices of the samples of each split.

    Raises:
        ValueError: If a fraction is out of its range, or there are too few groups for all splits.

    Example:
        >>> import numpy as np
        >>> groups, targets = list("aabbccdd"), np.array([0, 1] * 4)
        >>> splits = split_by_group(groups, targets, val_fraction=0.25, test_fraction=0.25, seed=0)
        >>> {name: len(rows) for name, rows in splits.items()}
        {'train': 4, 'val': 2, 'test': 2}
    """
    check_fractions(val_fraction, test_fraction)
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    check_integer("seed", seed, 0)
    splits = [name for name in SPLITS if fractions[name] > 0]
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < len(splits):
        raise ValueError(f"The splits {', '.join(splits)} need at least {len(splits)} groups. Found {len(names)}.")
    if targets.ndim == 1 and targets.dtype.kind == "f":
        targets = np.searchsorted(np.quantile(targets, [0.2, 0.4, 0.6, 0.8]), targets)
    if targets.ndim == 2:  # and as many samples as the fractions say, also those without a label
        weights = np.column_stack((targets, np.ones(len(targets))))
    else:
        weights = np.eye(int(np.max(targets)) + 1)[targets]
    counts = np.zeros((len(names), weights.shape[1]))
    np.add.at(counts, members, weights)
    split_of = _assign(counts, np.array([fractions[name] for name in splits]), np.random.default_rng(seed))
    return {
        name: np.flatnonzero(split_of[members] == splits.index(name)) if name in splits else np.zeros(0, np.int64)
        for name in SPLITS
    }


def with_validation(
    rows: Mapping[SplitName, np.ndarray], groups: Sequence[str], targets: np.ndarray, *, val_fraction: float, seed: int
) -> dict[SplitName, np.ndarray]:
    """Splits with a validation split, drawn from training by group where there is none.

    Args:
        rows: Indices of the samples of each split.
        groups: Group of every sample.
        targets: Target of every sample, see :func:`split_by_group`.
        val_fraction: Fraction of the training samples that is drawn.
        seed: Seed of the order.

    Raises:
        ValueError: As :func:`split_by_group` does.

    Example:
        >>> import numpy as np
        >>> rows = {"train": np.array([2, 3, 4, 5]), "val": np.array([], int), "test": np.array([0, 1])}
        >>> drawn = with_validation(rows, list("aabbcc"), np.array([0, 1] * 3), val_fraction=0.5, seed=0)
        >>> {name: len(drawn[name]) for name in drawn}
        {'train': 2, 'val': 2, 'test': 2}
    """
    if len(rows["val"]):
        return dict(rows)
    train = rows["train"]
    drawn = split_by_group(
        [groups[row] for row in train], targets[train], val_fraction=val_fraction, test_fraction=0.0, seed=seed
    )
    return {"train": train[drawn["train"]], "val": train[drawn["val"]], "test": rows["test"]}


def check_groups(rows: Mapping[SplitName, np.ndarray], groups: Sequence[str], owner: str) -> None:
    """Check that no group is in two splits.

    Args:
        rows: Indices of the samples of each split.
        groups: Group of every sample.
        owner: Whose splits they are, for the message.

    Raises:
        ValueError: If one is.
    """
    splits_of: dict[str, set[str]] = collections.defaultdict(set)
    for split, indices in rows.items():
        for row in indices:
            splits_of[groups[row]].add(split)
    shared = [group for group, splits in splits_of.items() if len(splits) > 1]
    if shared:
        names = ", ".join(repr(group) for group in shared[:3]) + (", …" if len(shared) > 3 else "")
        raise ValueError(
            f"{owner}'s split puts {len(shared)} of {len(splits_of)} groups in several splits ({names}), so that "
            "protocol clean cannot take it. Draw the splits by group (--data.resplit true, in Python resplit=True), "
            "or take the split as it is (--data.protocol paper, in Python protocol='paper')."
        )


def check_filled(rows: Mapping[SplitName, np.ndarray], names: Sequence[SplitName], owner: str) -> None:
    """Check that splits have samples.

    Args:
        rows: Indices of the samples of each split.
        names: The splits.
        owner: Whose splits they are, for the message.

    Raises:
        ValueError: If one is empty.
    """
    for name in names:
        if not len(rows[name]):
            raise ValueError(f"Every split should have samples. Split '{name}' of {owner} would be empty.")


def leave_out_shared(rows: Mapping[SplitName, np.ndarray], groups: Sequence[str]) -> dict[SplitName, np.ndarray]:
    """Splits without a shared group, the test split being whole.

    Validation loses what shares a group with the test split, training what shares one with either.

    Args:
        rows: Indices of the samples of each split.
        groups: Group of each sample.

    Example:
        >>> import numpy as np
        >>> rows = {"train": np.array([0, 1, 2]), "val": np.array([3]), "test": np.array([4])}
        >>> {name: kept.tolist() for name, kept in leave_out_shared(rows, list("abcbc")).items()}
        {'train': [0], 'val': [3], 'test': [4]}
    """
    names = np.asarray(groups)
    val = rows["val"][~np.isin(names[rows["val"]], names[rows["test"]])]
    taken = names[np.concatenate((val, rows["test"]))]
    return {"train": rows["train"][~np.isin(names[rows["train"]], taken)], "val": val, "test": rows["test"]}


def check_fractions(val_fraction: float, test_fraction: float, *, positive: bool = False) -> None:
    """Check that fractions are at least 0 and together below 1.

    Raises:
        ValueError: If they are not, or one is 0 and ``positive`` is set.
    """
    smallest = min(val_fraction, test_fraction)
    in_range = smallest > 0 if positive else smallest >= 0
    if not (in_range and val_fraction + test_fraction < 1):  # NaN fails this too
        raise ValueError(
            f"Parameters `val_fraction` and `test_fraction` should be {'above' if positive else 'at least'} 0 and "
            f"together below 1. Found `val_fraction = {val_fraction}`, `test_fraction = {test_fraction}`."
        )


def _assign(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Index of the split of each group.

    Args:
        counts: Number of samples per class, shape (groups, classes).
        fractions: Fraction of each split.
        rng: Draws the order of the groups.
    """
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    goal = fractions[:, None] * np.maximum(counts.sum(0), 1)  # a class without samples would divide by zero
    missing = goal.copy()
    split_of = np.zeros(len(counts), dtype=np.int64)
    for group in order:
        # (missing − counts)² − missing², the change of the sum.
        change = ((counts[group] ** 2 - 2 * missing * counts[group]) / goal).sum(1)
        split_of[group] = int(np.argmin(change))
        missing[split_of[group]] -= counts[group]
    # With few groups a split may stay empty: move the smallest group of the largest split there.
    for split in range(len(fractions)):
        if not (split_of == split).any():
            largest = np.bincount(split_of, minlength=len(fractions)).argmax()
            candidates = np.flatnonzero(split_of == largest)
            split_of[candidates[np.argmin(counts[candidates].sum(1))]] = split
    return split_of
