"""Mean and covariance of features, streamed in float64 and constant memory."""

import numpy as np

from harness.errors import UserError


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
        if not np.isfinite(rows).all():
            raise UserError("features are not finite; check the images and the extractor's weights")
        if len(rows) == 0:
            return self
        batch = Moments(len(self.mean))
        batch.count = len(rows)
        batch.mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - batch.mean
        batch.scatter = centred.T @ centred
        return self.merge(batch)

    def merge(self, other: "Moments") -> "Moments":
        """Take in everything that `other` has seen; returns self."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / count)
        self.scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        self.count = count
        return self
