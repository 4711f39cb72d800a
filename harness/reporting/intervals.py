"""Student's t-intervals: of a mean, of a difference of means, of the next value; and Holm's correction for many tests.

Every function takes plain numbers, here mostly logarithms of FIDs; intervals are two-sided at `level`.
"""

from collections.abc import Iterable, Sequence

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


def pooled_sd(groups: Iterable[Sequence[float] | np.ndarray]) -> tuple[float, int]:
    """Standard deviation within groups, pooled over them, and its degrees of freedom; groups of one value add nothing.

    NaN and 0 where no group has two values.
    """
    samples = [np.asarray(group, np.float64) for group in groups]
    freedom = sum(len(sample) - 1 for sample in samples if len(sample))
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples if len(sample))
    return (float(np.sqrt(squares / freedom)) if freedom else float("nan")), freedom


def prediction_interval(
    mean: float, sd: float, n: int, freedom: float, level: float = CONFIDENCE
) -> tuple[float, float]:
    """Where the next value lies, given the mean of n values and a standard deviation with its degrees of freedom.

    mean -+ t sd sqrt(1 + 1/n); with a pooled `sd`, `freedom` is the pooled one.
    """
    half = half_width(sd**2 * (1 + 1 / n), freedom, level)
    return mean - half, mean + half


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
