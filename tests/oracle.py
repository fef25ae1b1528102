"""BMLR's label reshaping, one sample at a time, with the C × C matrices of the paper.

Independent of the library: NumPy, extended precision where the platform has it, ratios in log space.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmlr.functional import MINIMUM_TEMPERATURE

Rows = Mapping[str, NDArray[np.floating[Any]]]


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    shifted = logits.astype(np.longdouble) - logits.max()
    logs: NDArray[np.floating[Any]] = shifted - np.log(np.exp(shifted).sum())
    return logs


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.floating[Any]]:
    shifted = np.exp((logits.astype(np.longdouble) - logits.max()) / temperature)
    shares: NDArray[np.floating[Any]] = shifted / shifted.sum()
    return shares


def intensity(log_ratio: float, beta: float) -> float:
    """Eq. 7, with λ = exp(log_ratio) and no upper limit at β = 0."""
    upper = -np.log(np.longdouble(beta)) if beta > 0 else np.inf
    value: float = 1 - np.exp(-log_ratio) if 0 < log_ratio < upper else 0.0  # keeps the extended precision
    return value


def temperature(log_ratio_of_other: float, alpha: float) -> float:
    """T = α λ of the *other* modality (Eq. 5), kept above zero.

    It is infinite, a uniform softmax, where λ is out of range.
    """
    with np.errstate(over="ignore"):
        value: float = max(alpha * np.exp(log_ratio_of_other), MINIMUM_TEMPERATURE)
    return value


def mix(d: NDArray[np.floating[Any]], xi: float, y: int, *, keep_one_hot: bool) -> NDArray[np.floating[Any]]:
    """Eqs. 6 and 8: (ξ D + (1 − ξ) I) y, with D = d 1ᵀ."""
    matrix, identity = np.outer(d, np.ones(len(d))), np.eye(len(d))
    one_hot = identity[y]
    if not keep_one_hot:
        xi = float(xi > 0)
    label: NDArray[np.floating[Any]] = (xi * matrix + (1 - xi) * identity) @ one_hot
    return label


def two_modalities(
    rows: Rows, y: int, alpha: float, beta: float, *, keep_one_hot: bool
) -> tuple[dict[str, NDArray[np.floating[Any]]], dict[str, float]]:
    """Eqs. 4 to 8 for modalities a and v, symmetric in both, without any ranking."""
    labels, xi = {}, {}
    for u, other in zip(rows, reversed(list(rows)), strict=True):
        log_ratio = log_softmax(rows[u])[y] - log_softmax(rows[other])[y]
        d = softmax(rows[other], temperature(-log_ratio, alpha))
        xi[u] = intensity(log_ratio, beta)
        labels[u] = mix(d, xi[u], y, keep_one_hot=keep_one_hot)
    return labels, xi


def many_modalities(
    rows: Rows, y: int, alpha: float, beta: float, *, keep_one_hot: bool
) -> tuple[dict[str, NDArray[np.floating[Any]]], dict[str, float]]:
    """The strongest and the weakest play a and v (Sec. IV-F); ties share."""
    one_hot = np.eye(len(next(iter(rows.values()))))[y]
    labels, xi = dict.fromkeys(rows, one_hot), dict.fromkeys(rows, 0.0)
    confidence = {u: log_softmax(row)[y] for u, row in rows.items()}
    high, low = max(confidence.values()), min(confidence.values())
    weak = np.mean([rows[u].astype(np.longdouble) for u in rows if confidence[u] == low], axis=0)
    for u in (u for u in rows if confidence[u] == high):
        xi[u] = intensity(high - low, beta)
        labels[u] = mix(softmax(weak, temperature(low - high, alpha)), xi[u], y, keep_one_hot=keep_one_hot)
    return labels, xi


def reshape_sample(
    rows: Rows, y: int, alpha: float, beta: float, *, absent: Sequence[str] = (), keep_one_hot: bool = True
) -> tuple[dict[str, NDArray[np.floating[Any]]], dict[str, float]]:
    """Labels and intensity of one sample.

    A missing modality keeps the one-hot label.
    """
    one_hot = np.eye(len(next(iter(rows.values()))))[y]
    labels, xi = dict.fromkeys(rows, one_hot), dict.fromkeys(rows, 0.0)
    present = {u: row for u, row in rows.items() if u not in absent}
    if len(present) >= 2:
        rule = two_modalities if len(present) == 2 else many_modalities
        new_labels, new_xi = rule(present, y, alpha, beta, keep_one_hot=keep_one_hot)
        labels, xi = {**labels, **new_labels}, {**xi, **new_xi}
    return labels, xi


def is_ambiguous(
    rows: Rows, y: int, beta: float, tolerance: float, *, absent: Sequence[str] = (), keep_one_hot: bool = True
) -> bool:
    """Whether rounding alone may decide this sample.

    The equations jump in two places, and only there may the last bits of the logits decide: where λ reaches 1/β; and,
    with more than two modalities (or without the one-hot term), where two modalities are nearly equally confident, so
    that they change places as strongest or weakest. Modalities with identical logits are an exact tie, not a near one.
    """
    present = {u: row for u, row in rows.items() if u not in absent}
    confidence = {u: float(log_softmax(row)[y]) for u, row in present.items()}
    names = list(present)
    jumps_at_ties = len(present) > 2 or not keep_one_hot
    for i, u in enumerate(names):
        for v in names[i + 1 :]:
            gap = abs(confidence[u] - confidence[v])
            if jumps_at_ties and gap < tolerance and not np.array_equal(present[u], present[v]):
                return True
            if 0 < beta < 1 and abs(gap + np.log(beta)) < tolerance:
                return True
    return False


def reshape_batch(
    logits: Rows,
    targets: NDArray[np.floating[Any]],
    alpha: float,
    beta: float,
    *,
    present: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    keep_one_hot: bool = True,
) -> tuple[dict[str, NDArray[np.floating[Any]]], dict[str, NDArray[np.floating[Any]]]]:
    """The samples of a batch, one after another."""
    labels: dict[str, list[NDArray[np.floating[Any]]]] = {u: [] for u in logits}
    xi: dict[str, list[float]] = {u: [] for u in logits}
    for i, y in enumerate(targets):
        one_labels, one_xi = reshape_sample(
            {u: values[i] for u, values in logits.items()},
            int(y),
            alpha,
            beta,
            absent=absent_of(present, i),
            keep_one_hot=keep_one_hot,
        )
        for u in logits:
            labels[u].append(one_labels[u])
            xi[u].append(one_xi[u])
    return (
        {u: np.array(rows, dtype=np.float64) for u, rows in labels.items()},
        {u: np.array(values, dtype=np.float64) for u, values in xi.items()},
    )


def absent_of(present: Mapping[str, NDArray[np.floating[Any]]] | None, sample: int) -> list[str]:
    return [u for u, mask in (present or {}).items() if not mask[sample]]
