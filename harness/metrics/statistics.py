"""Mean and covariance of features, streamed in float64 and constant memory."""

from collections.abc import Iterator

import numpy as np

from harness.errors import UserError

BLOCK = 1000
"""Rows that are in float64 at a time."""


def blocks(n: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK rows that cover `n` rows."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


class Moments:
    """Count, mean (d,) and scatter matrix (d, d) of the rows seen so far, for any division into batches.

    Batches are combined by their means and centred scatters (Chan, Golub and LeVeque 1979), so that a mean far from
    zero costs no digits, unlike sums of squares.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance (d, d), as numpy.cov. Raises UserError with fewer than two rows."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, not {self.count}; draw more samples")
        return self.scatter / (self.count - 1)

    def update(self, rows: np.ndarray) -> "Moments":
        """Take in `rows` (n, d); returns self. Raises UserError where the shape differs or a value is not finite."""
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise UserError(f"features must be (n, {len(self.mean)}), not {rows.shape}")
        for block in blocks(len(rows)):
            self._update_block(rows[block])
        return self

    def _update_block(self, rows: np.ndarray) -> None:
        if not np.isfinite(rows).all():
            raise UserError("features are not finite; check the images and the extractor's weights")
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean
        self._combine(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Take in everything that `other` has seen; returns self."""
        if other.count:
            self._combine(other.count, other.mean, other.scatter)
        return self

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.count * count / total))
        self.count = total
