"""Seeds of random transforms."""

from __future__ import annotations

import numpy as np


def sample_seed(seed: int, position: int) -> int:
    """Seed of one sample's random transforms, below 2^63.

    A hash of the epoch's seed and the position.
    """
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
