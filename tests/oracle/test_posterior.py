"""q(z_s | z_t, x) against the forward Markov chain, simulated, and against diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler

from harness.diffusion import Clock, CosineClock, KarrasClock, Level, posterior, v_from_x
from harness.samplers import ancestral, ddim_step

CLOCKS = {"cosine": CosineClock(), "shifted": CosineClock(shift=-2.0), "karras": KarrasClock()}
GRID = 16


def level(logsnr: float, count: int = 1) -> Level:
    return Level.from_logsnr(np.full(count, logsnr))


@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-3.0, -2.5), (-2.0, 2.0), (0.0, 0.5), (1.0, 4.0), (-6.0, 6.0)])
def test_simulated_forward_chain(logsnr_t: float, logsnr_s: float) -> None:
    """Regress z_s on (z_t, x) over a chain of small steps z <- sqrt(1 - beta) z + sqrt(beta) eps."""
    rng, count, substeps = np.random.default_rng(0), 200_000, 4
    signal_s, signal_t = 1 / (1 + np.exp(-logsnr_s)), 1 / (1 + np.exp(-logsnr_t))
    x = rng.choice([-1.0, -0.2, 0.5], count)
    z_s = np.sqrt(signal_s) * x + np.sqrt(1 - signal_s) * rng.standard_normal(count)
    beta, z_t = 1 - (signal_t / signal_s) ** (1 / substeps), z_s
    for _ in range(substeps):
        z_t = np.sqrt(1 - beta) * z_t + np.sqrt(beta) * rng.standard_normal(count)
    design = np.stack([z_t, x], axis=1)
    slopes, (residual,), *_ = np.linalg.lstsq(design, z_s, rcond=None)
    variance = residual / count
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))

    mean, predicted = posterior(np.eye(2)[0][:, None], np.eye(2)[1][:, None], level(logsnr_t, 2), level(logsnr_s, 2))
    assert np.all(np.abs(slopes - mean[:, 0]) < 4 * errors)
    assert np.all(errors < 0.02), "the simulation must be sharp enough to tell"
    assert abs(variance - predicted[0]) < 4 * predicted[0] * np.sqrt(2 / count)


def cumulative(clock: Clock) -> torch.Tensor:
    """alpha^2 at times 1/GRID .. 1; the schedulers put alpha = 1 before the first."""
    return torch.from_numpy(clock(np.arange(1, GRID + 1) / GRID).alpha ** 2)


def levels(clock: Clock, index: int, stride: int) -> tuple[Level, Level]:
    """The levels of the schedulers' step from `index` to `index - stride`, where -1 is clean data."""
    t = clock(np.array([(index + 1) / GRID]))
    return t, clock(np.array([(index + 1 - stride) / GRID])) if index >= stride else level(np.inf)


def random_step(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, x, eps = np.random.default_rng(seed).standard_normal((3, 1, 1, 4, 4))
    return z, x, eps


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_diffusers_ddim(clock: Clock, eta: float, prediction: str) -> None:
    """eta = 0 is the DDIM transition, eta = 1 the ancestral one."""
    scheduler = DDIMScheduler(GRID, prediction_type=prediction, clip_sample=False)
    scheduler.alphas_cumprod = cumulative(clock)
    scheduler.set_timesteps(4)
    z, x, eps = random_step()
    for index in (15, 11, 7, 3):
        t, s = levels(clock, index, stride=4)
        output = x if prediction == "sample" else v_from_x(z, x, t)
        noise = {"variance_noise": torch.from_numpy(eps)} if eta else {}
        expected = scheduler.step(torch.from_numpy(output), index, torch.from_numpy(z), eta, **noise).prev_sample
        transition = ancestral if eta else ddim_step
        np.testing.assert_allclose(transition(z, x, t, s, eps), expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("upper_bound", [0.0, 0.3, 0.5, 1.0])
def test_diffusers_ddpm(clock: Clock, upper_bound: float) -> None:
    """Its variances "fixed_small", "fixed_large", and the learned log-linear range between them."""
    kind = {0.0: "fixed_small", 1.0: "fixed_large"}.get(upper_bound, "learned_range")
    scheduler = DDPMScheduler(GRID, prediction_type="sample", clip_sample=False, variance_type=kind)
    scheduler.alphas_cumprod = cumulative(clock)
    z, x, _ = random_step()
    for index in (15, 8, 1):
        t, s = levels(clock, index, stride=1)
        fraction = np.full_like(x, 2 * upper_bound - 1)
        output = np.concatenate([x, fraction], axis=1) if kind == "learned_range" else x
        arguments = torch.from_numpy(output), index, torch.from_numpy(z)
        expected = scheduler.step(*arguments, generator=torch.Generator().manual_seed(0)).prev_sample.numpy()
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
        np.testing.assert_allclose(ancestral(z, x, t, s, eps, upper_bound), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 9, 40])
def test_karras_clock_has_the_sigmas_of_diffusers_edm(steps: int) -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(steps)
    at = KarrasClock()(np.linspace(1, 0, steps))
    np.testing.assert_allclose(at.sigma / at.alpha, scheduler.sigmas[:-1].numpy(), rtol=1e-5)
