"""How far do two lists of figures agree in order?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Give Spearman's rank correlation, ties at the mean of their places.

    None for fewer than three pairs, and where one side does not vary: nothing is ordered there.

    Source: Spearman (1904). Here because importing `scipy.stats` would cost every cycle more than a second.
    """
    first, second = ranks(one), ranks(other)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Give each value's place in ascending order, counted from 1, ties the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = counts.cumsum() - (counts - 1) / 2
    return means[place]
