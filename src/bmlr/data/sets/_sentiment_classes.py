"""Classes of sentiment scores."""

from __future__ import annotations

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
