"""The Gaussian diffusion process: clocks, forward process, posterior, parameterisations, weights and guidance.

Every function is pure and written over the array API, so that it runs unchanged on NumPy, PyTorch and JAX arrays.
Conventions (Salimans & Ho 2022; Kingma & Gao 2023): z_t = alpha_t x + sigma_t eps, alpha_t^2 + sigma_t^2 = 1, data x in
[-1, 1], and t in [0, 1] the time on a clock, that is on a log-SNR schedule lambda(t) = log(alpha_t^2 / sigma_t^2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import array_namespace

Array = Any
"""An array of any library that array_api_compat knows (NumPy, PyTorch, JAX)."""


class Level(NamedTuple):
    """The noise level of each sample of a batch: log-SNR, alpha and sigma, each of shape (batch,)."""

    logsnr: Array
    alpha: Array
    sigma: Array

    @classmethod
    def from_logsnr(cls, logsnr: Array) -> "Level":
        """Variance-preserving level: alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)."""
        xp = array_namespace(logsnr)
        return cls(logsnr, (1 + xp.exp(-logsnr)) ** -0.5, (1 + xp.exp(logsnr)) ** -0.5)


@dataclass(frozen=True)
class CosineClock:
    """The cosine schedule, its ends at finite log-SNR; shifted with resolution, or interpolated between two shifts.

    lambda(t) = -2 log tan(a t + b) + shift (Nichol & Dhariwal 2021; Hoogeboom et al. 2023, equations 5 and 6). a and b
    put the unshifted ends at logsnr_max (t = 0) and logsnr_min (t = 1). With `shift_high` the shift moves linearly in t
    from `shift_high` at t = 0 to `shift` at t = 1.
    """

    logsnr_min: float = -10.0
    logsnr_max: float = 10.0
    shift: float = 0.0
    shift_high: float | None = None

    def __call__(self, t: Array) -> Level:
        """The level at each time t (batch,) in [0, 1]."""
        xp = array_namespace(t)
        start = math.atan(math.exp(-0.5 * self.logsnr_max))
        end = math.atan(math.exp(-0.5 * self.logsnr_min))
        shift_high = self.shift if self.shift_high is None else self.shift_high
        shift = shift_high + t * (self.shift - shift_high)
        return Level.from_logsnr(-2 * xp.log(xp.tan(start + t * (end - start))) + shift)


@dataclass(frozen=True)
class KarrasClock:
    """EDM's test-time schedule as a clock (Karras et al. 2022, equation 5), shifted with resolution.

    sigma / alpha = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, lambda = -2 log(sigma / alpha).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    shift: float = 0.0

    def __call__(self, t: Array) -> Level:
        """The level at each time t (batch,) in [0, 1]."""
        xp = array_namespace(t)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return Level.from_logsnr(-2 * self.rho * xp.log(low + t * (high - low)) + self.shift)


Clock = Callable[[Array], Level]
CLOCKS: dict[str, type] = {"cosine": CosineClock, "karras": KarrasClock}


def make_clock(name: str, **options: Any) -> Clock:
    """The clock of a profile's `clock` section."""
    return CLOCKS[name](**options)


def per_sample(values: Array, like: Array) -> Array:
    """Reshape (batch,) so that it broadcasts against `like` (batch, ...)."""
    xp = array_namespace(values)
    return xp.reshape(values, (-1,) + (1,) * (like.ndim - 1))


def diffuse(x: Array, eps: Array, level: Level) -> Array:
    """Forward process: z_t = alpha_t x + sigma_t eps."""
    return per_sample(level.alpha, x) * x + per_sample(level.sigma, x) * eps


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean (batch, ...) and a variance per sample (batch,)."""

    mean: Array
    variance: Array


def transition_variance(t: Level, s: Level) -> Array:
    """sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2 (batch,), computed without cancellation for s near t."""
    xp = array_namespace(t.logsnr)
    return -xp.expm1(t.logsnr - s.logsnr) * t.sigma**2


def posterior(z_t: Array, x: Array, t: Level, s: Level, upper_bound: float = 0.0) -> Gaussian:
    """q(z_s | z_t, x) for s < t, safe where sigma_s = 0.

    `upper_bound` in [0, 1] moves the variance log-linearly from the posterior's own (0) to its upper bound
    sigma_{t|s}^2 (1): the tuned sampling noise of Salimans & Ho 2022.
    """
    step = transition_variance(t, s)
    shrink = (s.sigma / t.sigma) ** 2
    mean = per_sample(t.alpha / s.alpha * shrink, x) * z_t + per_sample(s.alpha * step / t.sigma**2, x) * x
    return Gaussian(mean, step * shrink ** (1 - upper_bound))


def eps_from_x(z: Array, x: Array, level: Level) -> Array:
    """The noise that z = alpha x + sigma eps implies."""
    return (z - per_sample(level.alpha, x) * x) / per_sample(level.sigma, x)


def x_from_eps(z: Array, eps: Array, level: Level) -> Array:
    """The data that z = alpha x + sigma eps implies."""
    return (z - per_sample(level.sigma, eps) * eps) / per_sample(level.alpha, eps)


def x_from_v(z: Array, v: Array, level: Level) -> Array:
    """The data that v = alpha eps - sigma x implies (Salimans & Ho 2022, appendix D)."""
    return per_sample(level.alpha, v) * z - per_sample(level.sigma, v) * v


def v_from_x(z: Array, x: Array, level: Level) -> Array:
    """v = alpha eps - sigma x for the noise that z and x imply, equal to (alpha z - x) / sigma."""
    return (per_sample(level.alpha, x) * z - x) / per_sample(level.sigma, x)


def ddim(z_t: Array, x: Array, t: Level, s: Level) -> Array:
    """Deterministic transition z_s = alpha_s x + (sigma_s / sigma_t)(z_t - alpha_t x) (Song et al. 2021)."""
    return per_sample(s.alpha, x) * x + per_sample(s.sigma / t.sigma, x) * (z_t - per_sample(t.alpha, x) * x)


def addim(z_t: Array, x: Array, t: Level, s: Level, variance: Array) -> Array:
    """The x whose DDIM transition is aDDIM's (Heek et al. 2024), which makes up for the variance that E[x | z_t] lacks.

    aDDIM is z_s = alpha_s x + sqrt(sigma_s^2 + (d / ||eps||^2) (alpha_s - alpha_t sigma_s / sigma_t)^2 variance) eps,
    with the eps that z_t and x imply, d the number of values in a sample, and `variance` (batch,) of x given z_t, per
    value. As an x the correction needs no difference between the root and sigma_s.
    """
    xp = array_namespace(t.logsnr)
    eps = eps_from_x(z_t, x, t)
    gain = -xp.expm1((t.logsnr - s.logsnr) / 2) * xp.exp(s.logsnr / 2)  # alpha_s / sigma_s - alpha_t / sigma_t
    excess = variance / xp.mean(eps**2, axis=tuple(range(1, x.ndim))) * gain
    return x + per_sample(excess / (1 + xp.sqrt(1 + excess * gain)), x) * eps


def guide(conditional: Array, unconditional: Array, weight: float) -> Array:
    """Classifier-free guidance g_c + w (g_c - g_u); w = 0 is none."""
    return conditional + weight * (conditional - unconditional)


SIGMA_DATA = 0.5


def _flat(level: Level, x: Array, prediction: Array) -> Array:
    return array_namespace(level.logsnr).ones_like(level.logsnr)


def _snr(level: Level, x: Array, prediction: Array) -> Array:
    return array_namespace(level.logsnr).exp(level.logsnr)


def _snr_plus_one(level: Level, x: Array, prediction: Array) -> Array:
    return _snr(level, x, prediction) + 1


def _truncated_snr(level: Level, x: Array, prediction: Array) -> Array:
    xp = array_namespace(level.logsnr)
    return xp.exp(xp.clip(level.logsnr, min=0.0))


def _edm(level: Level, x: Array, prediction: Array) -> Array:
    return _snr(level, x, prediction) + SIGMA_DATA**-2


def _dmd_adaptive(level: Level, x: Array, prediction: Array) -> Array:
    xp = array_namespace(x)
    return 1 / xp.mean(xp.abs(x - prediction), axis=tuple(range(1, x.ndim)))


WEIGHTS: dict[str, Callable[[Level, Array, Array], Array]] = {
    "flat": _flat,
    "snr": _snr,
    "snr+1": _snr_plus_one,  # the v-prediction loss
    "truncated-snr": _truncated_snr,  # max(1, SNR): Salimans & Ho 2022
    "edm": _edm,  # SNR + 1 / sigma_data^2: Karras et al. 2022, per squared error in x
    "dmd-adaptive": _dmd_adaptive,  # 1 / mean |x - g_theta|: Yin et al. 2023, equation 8
}


def weight(name: str, level: Level, x: Array, prediction: Array) -> Array:
    """The weight w (batch,) of each sample's squared error in x at this level; `name` is a key of WEIGHTS.

    `x` and `prediction` (batch, ...) are the sample and the teacher's denoised prediction, which the adaptive weight
    compares; pass them without gradient.
    """
    return WEIGHTS[name](level, x, prediction)


def squared_error(a: Array, b: Array) -> Array:
    """||a - b||^2 summed over all but the batch axis: (batch,)."""
    return inner(a - b, a - b)


def inner(a: Array, b: Array) -> Array:
    """a^T b summed over all but the batch axis: (batch,)."""
    return array_namespace(a).sum(a * b, axis=tuple(range(1, a.ndim)))


def pseudo_huber(a: Array, b: Array, c: float) -> Array:
    """sqrt(||a - b||^2 + c^2) - c, summed over all but the batch axis: (batch,)."""
    square = squared_error(a, b)
    return square / ((square + c**2) ** 0.5 + c)
