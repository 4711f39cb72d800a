"""The three sampler families, with one signature, and the loop that draws images from a denoiser.

They are not interchangeable: each method names the family that its students are trained for.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from harness.conditions import Condition
from harness.diffusion import Array, Clock, Level, ddim, diffuse, per_sample, posterior
from harness.noise import Noise

Transition = Callable[[Array, Array, Level, Level, Array], Array]
"""(z_t, x_hat, t, s, eps) -> z_s, with eps (batch, ...) standard normal."""


def ancestral(z_t: Array, x: Array, t: Level, s: Level, eps: Array, upper_bound: float = 0.0) -> Array:
    """Draw z_s ~ q(z_s | z_t, x) (Algorithm 1); `upper_bound` as in `diffusion.posterior`."""
    mean, variance = posterior(z_t, x, t, s, upper_bound)
    return mean + per_sample(variance, x) ** 0.5 * eps


def ddim_step(z_t: Array, x: Array, t: Level, s: Level, eps: Array) -> Array:
    """The deterministic DDIM transition; eps is not used."""
    return ddim(z_t, x, t, s)


def renoise(z_t: Array, x: Array, t: Level, s: Level, eps: Array) -> Array:
    """Draw z_s ~ q(z_s | x) with fresh noise, forgetting z_t (Song et al. 2023, Algorithm 1)."""
    return diffuse(x, eps, s)


FAMILIES: dict[str, Transition] = {"ancestral": ancestral, "ddim": ddim_step, "renoise": renoise}


def equal_times(k: int) -> list[float]:
    """The k equal steps of the clock, from 1 down to 1/k; the step after the last ends at 0."""
    return [i / k for i in range(k, 0, -1)]


def nfe(steps: int, guidance: float) -> int:
    """Function evaluations of one image: a guided step costs two."""
    return steps * (1 if guidance == 0 else 2)


def sampling_step(
    clock: Clock,
    family: str,
    upper_bound: float,
    denoiser: Callable[..., Array],
    z: Array,
    t: Array,
    s: Array,
    condition: Condition,
    eps: Array,
) -> tuple[Array, Array]:
    """One step from time t to s (batch,): the next z_s and the denoised x_hat. Pure, for a backend to compile."""
    x = denoiser(z, t, condition)
    transition = partial(ancestral, upper_bound=upper_bound) if family == "ancestral" else FAMILIES[family]
    return transition(z, x, clock(t), clock(s), eps), x


def draw_images(
    step: Callable[..., tuple[Array, Array]],
    to_numpy: Callable[[Array], np.ndarray],
    times: list[float],
    shape: tuple[int, int, int],
    conditions: Callable[[int, int], Condition],
    n_samples: int,
    batch: int,
    seed: int,
    stochastic: bool,
    purpose: str = "sample",
) -> Iterator[np.ndarray]:
    """Yield batches of images (b, *shape) in [-1, 1], not clipped; `conditions(start, count)` says what they show.

    `step` is a compiled `sampling_step` that takes (z, t, s, condition, eps). All noise is addressed by the image's
    index, so the images do not depend on the batch size; another `purpose` has noise of its own. The sample is the last
    x_hat (Algorithm 1).
    """
    noise = Noise(seed)
    for start in range(0, n_samples, batch):
        count = min(batch, n_samples - start)
        condition = conditions(start, count)
        z = x = noise.normal(f"{purpose}/start", 0, start, count, shape)
        eps = np.zeros_like(z)
        for i, (t, s) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
            if stochastic and s > 0:
                eps = noise.normal(f"{purpose}/step", i, start, count, shape)
            z, x = step(z, np.full(count, t, np.float32), np.full(count, s, np.float32), condition, eps)
        yield to_numpy(x)
