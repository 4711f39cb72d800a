"""A Gaussian mixture whose denoiser and posterior are known exactly, in NumPy float64: the data of the oracle tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.diffusion import Clock, Level


@dataclass(frozen=True)
class Mixture:
    """sum_j weights_j N(means_j, diag(variances_j)): weights (J,), means, variances (J, D). Component j is class j."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(D,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        """(D, D)."""
        centred = self.means - self.mean
        return np.diag(self.weights @ self.variances) + np.einsum("j,jd,je->de", self.weights, centred, centred)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Data (count, D)."""
        component = rng.choice(len(self.weights), count, p=self.weights)
        return self.means[component] + self.variances[component] ** 0.5 * rng.standard_normal(
            (count, self.means.shape[1])
        )

    def _given(self, z: np.ndarray, level: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per component given z (N, D): log p(z, j) up to a constant (N, J), mean and variance of x (N, J, D)."""
        alpha, sigma = (np.asarray(a, np.float64)[:, None, None] for a in (level.alpha, level.sigma))
        marginal = alpha**2 * self.variances + sigma**2
        residual = z[:, None] - alpha * self.means
        log_joint = np.log(self.weights) - 0.5 * (residual**2 / marginal + np.log(marginal)).sum(axis=-1)
        mean = self.means + alpha * self.variances / marginal * residual
        return log_joint, mean, self.variances * sigma**2 / marginal

    def log_density(self, z: np.ndarray, level: Level) -> np.ndarray:
        """log q(z) (N,) up to a constant, for z (N, D)."""
        return np.logaddexp.reduce(self._given(z, level)[0], axis=1)

    def denoise(self, z: np.ndarray, level: Level, labels: np.ndarray | None = None) -> np.ndarray:
        """E[x | z] like z (N, ...); given the class as well where a label is below J."""
        log_joint, mean, _ = self._given(z.reshape(len(z), -1).astype(np.float64), level)
        share = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1, keepdims=True))
        if labels is not None:
            classes = len(self.weights)
            share = np.where(labels[:, None] < classes, np.arange(classes) == labels[:, None], share)
        return (share[..., None] * mean).sum(axis=1).reshape(z.shape)

    def draw_posterior(self, rng: np.random.Generator, z: np.ndarray, level: Level) -> np.ndarray:
        """x ~ q(x | z), like z (N, ...)."""
        log_joint, mean, variance = self._given(z.reshape(len(z), -1).astype(np.float64), level)
        component = (log_joint + rng.gumbel(size=log_joint.shape)).argmax(axis=1)  # the Gumbel-max trick
        rows = np.arange(len(z)), component
        return (mean[rows] + variance[rows] ** 0.5 * rng.standard_normal(mean[rows].shape)).reshape(z.shape)

    def denoiser(self, clock: Clock) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """The exact denoiser with the signature of `method.Denoiser`; label J means "none"."""
        return lambda z, t, labels: self.denoise(z, clock(t.astype(np.float64)), labels)


MIXTURE = Mixture(
    weights=np.array([0.5, 0.3, 0.2]),
    means=np.array([[0.6, 0.3], [-0.7, 0.4], [0.1, -0.8]]),
    variances=np.array([[0.01, 0.06], [0.04, 0.02], [0.05, 0.01]]),
)
