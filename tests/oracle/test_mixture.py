"""Sampling a Gaussian mixture with its exact denoiser: the samplers reach its moments; guidance and its cost."""

from functools import partial

import numpy as np
import pytest

from harness.diffusion import CosineClock, Level, v_from_x, x_from_v
from harness.method import Denoiser
from harness.prompts import class_prompts
from harness.samplers import draw_images, equal_times, nfe, sampling_step
from tests.oracle.mixture import MIXTURE

CLOCK = CosineClock()
CLASSES = len(MIXTURE.weights)
COUNT = 20_000


def images(family: str, k: int, conditional: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """COUNT images (COUNT, 2) and their labels."""
    exact = MIXTURE.denoiser(CLOCK)

    def denoiser(z: np.ndarray, t: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return exact(z, t, labels if conditional else np.full_like(labels, CLASSES))

    step = partial(sampling_step, CLOCK, family, 0.0, denoiser)
    stochastic, given = family != "ddim", class_prompts(CLASSES)
    (x,) = draw_images(step, np.asarray, equal_times(k), (1, 1, 2), given.condition, COUNT, COUNT, 0, stochastic)
    return x.reshape(COUNT, 2), given.labels[given.rows(0, COUNT)]


def z_scores(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Errors of the sample's mean and covariance entries, in their standard errors."""
    centred = x - mean
    products = np.einsum("nd,ne->nde", centred, centred)[:, *np.triu_indices(2)]
    statistics = np.concatenate([centred, products - covariance[np.triu_indices(2)]], axis=1)
    return statistics.mean(axis=0) / (statistics.std(axis=0) / len(x) ** 0.5)


def test_the_denoiser_obeys_tweedies_formula() -> None:
    rng, h = np.random.default_rng(0), 1e-5
    z, level = rng.standard_normal((50, 2)), CLOCK(rng.uniform(0.05, 0.95, 50))
    score = np.stack(
        [(MIXTURE.log_density(z + d, level) - MIXTURE.log_density(z - d, level)) / (2 * h) for d in h * np.eye(2)],
        axis=1,
    )
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    np.testing.assert_allclose(MIXTURE.denoise(z, level), (z + sigma**2 * score) / alpha, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logsnr", [-3.0, 0.0, 3.0])
def test_the_posterior_draws_are_centred_on_the_denoiser_and_distributed_as_the_data(logsnr: float) -> None:
    rng, level = np.random.default_rng(1), Level.from_logsnr(np.full(COUNT, logsnr))
    z = level.alpha[:, None] * MIXTURE.draw(rng, COUNT) + level.sigma[:, None] * rng.standard_normal((COUNT, 2))
    x = MIXTURE.draw_posterior(rng, z, level)
    assert np.abs(z_scores(x, MIXTURE.mean, MIXTURE.covariance)).max() < 4
    error = x - MIXTURE.denoise(z, level)
    moments = np.concatenate([error, error * z, error * z**2], axis=1)
    assert np.abs(moments.mean(axis=0) / (moments.std(axis=0) / COUNT**0.5)).max() < 4


@pytest.mark.parametrize("family", ["ancestral", "ddim"])
def test_samples_reach_the_moments_as_steps_grow(family: str) -> None:
    errors = []
    for k in (2, 8, 64):
        x, _ = images(family, k)
        gap = np.cov(x, rowvar=False) - MIXTURE.covariance
        errors.append(np.linalg.norm(gap) + np.linalg.norm(x.mean(axis=0) - MIXTURE.mean))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    x, _ = images(family, 256)
    assert np.abs(z_scores(x, MIXTURE.mean, MIXTURE.covariance)).max() < 4


def gaussian_sample(mean: np.ndarray, variance: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (D,) of the last x_hat of k ancestral steps for data N(mean, diag(variance)).

    z stays Gaussian: x_hat = mean + gain (z - alpha mean), and z_s mixes z_t and x_hat and adds the posterior's noise.
    """
    z_mean, z_variance = np.zeros_like(mean), np.ones_like(mean)
    for i in range(k, 0, -1):
        (alpha, alpha_s), (sigma, sigma_s) = CLOCK(np.array([i, i - 1]) / k)[1:]
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x_mean, x_variance = mean + gain * (z_mean - alpha * mean), gain**2 * z_variance
        step = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
        from_z, from_x = alpha / alpha_s * (sigma_s / sigma) ** 2, alpha_s * step / sigma**2
        z_mean = from_z * z_mean + from_x * x_mean
        z_variance = (from_z + from_x * gain) ** 2 * z_variance + step * (sigma_s / sigma) ** 2
    return x_mean, x_variance


@pytest.mark.parametrize("k", [1, 3, 16])
def test_each_class_has_the_moments_of_its_k_steps_in_closed_form(k: int) -> None:
    x, labels = images("ancestral", k, conditional=True)
    np.testing.assert_array_equal(labels, np.arange(COUNT) % CLASSES)
    for j in range(CLASSES):
        mean, variance = gaussian_sample(MIXTURE.means[j], MIXTURE.variances[j], k)
        assert np.abs(z_scores(x[labels == j], mean, np.diag(variance))).max() < 4


@pytest.mark.parametrize("guidance", [0.0, 0.1, 2.0])
def test_guidance_extrapolates_and_costs_a_second_evaluation(guidance: float) -> None:
    exact, seen = MIXTURE.denoiser(CLOCK), []

    def network(params: None, z: np.ndarray, t: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, None]:
        seen.append(labels)
        return v_from_x(z, exact(z, t, labels), CLOCK(t)), None

    z, eps = np.random.default_rng(2).standard_normal((2, 30, 1, 1, 2))
    t, s, labels = np.full(30, 0.5), np.full(30, 0.25), np.arange(30) % CLASSES
    denoiser = Denoiser(network, None, CLOCK, CLASSES, guidance)
    _, x = sampling_step(CLOCK, "ancestral", 0.0, denoiser, z, t, s, labels, eps)
    conditional, unconditional = exact(z, t, labels), exact(z, t, np.full(30, CLASSES))
    assert np.abs(conditional - unconditional).max() > 0.1
    if guidance == 0:
        np.testing.assert_array_equal(x, x_from_v(z, network(None, z, t, labels)[0], CLOCK(t)))
        seen.pop()
    np.testing.assert_allclose(x, (1 + guidance) * conditional - guidance * unconditional, rtol=1e-12, atol=1e-12)
    assert len(seen) == nfe(1, guidance)
    assert nfe(8, guidance) == 8 * len(seen)
