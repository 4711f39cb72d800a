"""Student's t-intervals: of a mean, of a difference of means; and Holm's correction for many tests.

Every function takes plain numbers, here mostly logarithms of FIDs; intervals are two-sided at `level`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def half_width(variance: float, freedom: float, level: float = CONFIDENCE) -> float:
    """Half the width of the t-interval of an estimate with this estimated variance and its degrees of freedom."""
    return float(np.sqrt(variance) * stats.t.ppf((1 + level) / 2, freedom))


def t_interval(values: Sequence[float] | np.ndarray, level: float = CONFIDENCE) -> tuple[float, float]:
    """Lower and upper end of Student's interval of the mean of two or more values."""
    sample = np.asarray(values, np.float64)
    half = half_width(sample.var(ddof=1) / len(sample), len(sample) - 1, level)
    return float(sample.mean() - half), float(sample.mean() + half)


def welch_half_width(first: np.ndarray, second: np.ndarray, level: float = CONFIDENCE) -> float:
    """Half the width of Welch's interval of the difference of two means, of two or more values each (Welch 1947)."""
    sides = (first, second)
    parts = np.array([side.var(ddof=1) / len(side) for side in sides])
    squares = parts**2 / np.array([len(side) - 1 for side in sides])
    return half_width(parts.sum(), parts.sum() ** 2 / squares.sum() if squares.any() else 1.0, level)


def pooled_sd(values: np.ndarray) -> tuple[float, float]:
    """Standard deviation within columns, pooled over them, and its degrees of freedom; values (n, columns), n > 1.

    The entries of a row may depend on each other. With S the covariance of the columns, the pooled variance is
    trace(S) / columns, and (n - 1) trace(S)^2 / trace(S S) are its degrees of freedom (Satterthwaite 1946; Box 1954):
    n - 1 where the columns move together, up to n - 1 for each where they do not.
    """
    centred = values - values.mean(axis=0)
    covariance = centred.T @ centred / (len(values) - 1)
    trace, squares = np.trace(covariance), np.sum(covariance**2)
    freedom = (len(values) - 1) * (trace**2 / squares if squares else 1.0)
    return float(np.sqrt(trace / values.shape[1])), float(freedom)


def t_test(mean: float, variance: float, freedom: float) -> float:
    """Two-sided p-value of the hypothesis that an estimate's true value is zero; 1 where the variance is zero too."""
    if variance == 0:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in their order.

    Those of at most alpha are rejected at the family-wise level alpha.
    """
    n = len(p_values)
    adjusted, largest = [0.0] * n, 0.0
    for rank, place in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
