"""Classes of published scores: sentiment, humour and sarcasm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from bmlr._checks import check_choice

#: Names of 7, 3 and 2 classes.
CLASS_NAMES = {
    7: (
        "highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive",
    ),
    3: ("negative", "neutral", "positive"),
    2: ("negative", "non-negative"),
}  # fmt: skip

#: Names of CH-SIMS's 5, 3 and 2 classes, and the largest score of all but the last.
SIMS_CLASSES = {
    5: (("negative", "weakly negative", "neutral", "weakly positive", "positive"), (-0.7, -0.1, 0.1, 0.7)),
    3: (("negative", "neutral", "positive"), (-0.1, 0.1)),
    2: (("non-positive", "positive"), (0.0,)),
}


def sentiment_classes(
    scores: np.ndarray, num_classes: Literal[7, 3, 2] = 7, conversion: Literal["round", "bins"] = "round"
) -> np.ndarray:
    r"""Classes of sentiment scores s, means over annotators in [−3, 3].

    * 7 classes, ``round``: :math:`\mathrm{round}(\mathrm{clip}(s, -3, 3)) + 3`, halves to the even number, as
      "Acc-7" is computed in the literature: −2.5 and −1.5 are both −2, ±0.5 is 0.
    * 7 classes, ``bins``: BalanceBenchmark's, bounded by s < −2, s < −1, s < 0, s = 0, s ≤ 1, s ≤ 2. Only a score of
      exactly zero is neutral.
    * 3 classes: the sign of s.
    * 2 classes: s < 0 and s ≥ 0 ("Has0").

    Args:
        scores: Scores, shape (N,).
        num_classes: 7, 3 or 2.
        conversion: ``round`` or ``bins``; of effect with 7 classes only.

    Returns:
        Class indices, shape (N,), int64.

    Raises:
        ValueError: If an argument is out of its range, or a score is NaN.

    Example:
        >>> import numpy as np
        >>> scores = np.array([-3.0, -2.5, -0.5, 0.0, 0.4, 1.5, 2.6])
        >>> sentiment_classes(scores).tolist(), sentiment_classes(scores, conversion="bins").tolist()
        ([0, 1, 3, 3, 3, 5, 6], [0, 0, 2, 3, 4, 5, 6])
        >>> sentiment_classes(scores, 3).tolist(), sentiment_classes(scores, 2).tolist()
        ([0, 0, 0, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1])
    """
    if num_classes not in CLASS_NAMES:
        raise ValueError(f"Parameter `num_classes` should be 7, 3 or 2. Found `num_classes = {num_classes}`.")
    check_choice("conversion", conversion, ("round", "bins"))
    s = np.asarray(scores, dtype=np.float64)
    if np.isnan(s).any():
        raise ValueError("`scores` should be numbers. Found NaN.")
    if num_classes == 3:
        classes = np.sign(s) + 1
    elif num_classes == 2:
        classes = s >= 0
    elif conversion == "round":
        classes = np.round(np.clip(s, -3, 3)) + 3
    else:
        classes = np.select([s < -2, s < -1, s < 0, s == 0, s <= 1, s <= 2], range(6), 6)
    return np.asarray(classes, dtype=np.int64)


def sims_classes(scores: np.ndarray, num_classes: Literal[5, 3, 2] = 3) -> np.ndarray:
    """Classes of CH-SIMS's scores, as MMSA bins them.

    A score s is a mean over annotators, in [−1, 1].

    * 5 classes: s ≤ −0.7, ≤ −0.1, ≤ 0.1, ≤ 0.7, and above.
    * 3 classes: s ≤ −0.1, ≤ 0.1, and above; of the published scores, which are multiples of 0.2, the sign.
    * 2 classes: s ≤ 0 and s > 0.

    Args:
        scores: Scores, shape (N,).
        num_classes: 5, 3 or 2.

    Returns:
        Class indices, shape (N,), int64.

    Raises:
        ValueError: If there is no such number of classes.

    Example:
        >>> import numpy as np
        >>> scores = np.array([-0.8, -0.2, 0.0, 0.4, 1.0])
        >>> sims_classes(scores, 5).tolist(), sims_classes(scores).tolist(), sims_classes(scores, 2).tolist()
        ([0, 1, 2, 3, 4], [0, 0, 1, 2, 2], [0, 0, 0, 1, 1])
    """
    if num_classes not in SIMS_CLASSES:
        raise ValueError(f"Parameter `num_classes` should be 5, 3 or 2. Found `num_classes = {num_classes}`.")
    return np.searchsorted(SIMS_CLASSES[num_classes][1], np.asarray(scores, dtype=np.float64)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Scores of a published data set.

    Attributes:
        classes: Names of the finest classes made of them.
        classify: Makes these classes, shape (N,), of scores, shape (N,).
        limit: Largest absolute value.
        values: The only values, lowest first; None for means over annotators.
    """

    classes: tuple[str, ...]
    classify: Callable[[np.ndarray], np.ndarray]
    limit: float
    values: tuple[float, float] | None = None


SENTIMENT = Scale(CLASS_NAMES[7], sentiment_classes, 3.0)
SIMS = Scale(SIMS_CLASSES[5][0], lambda scores: sims_classes(scores, 5), 1.0)
HUMOUR = Scale(("not humorous", "humorous"), lambda scores: (scores > 0).astype(np.int64), 1.0, (0.0, 1.0))
SARCASM = Scale(("not sarcastic", "sarcastic"), lambda scores: (scores > 0).astype(np.int64), 1.0, (-1.0, 1.0))
