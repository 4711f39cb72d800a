"""The weights of the predictions against derivatives of the sampler that draws images, and against closed forms."""

from functools import partial

import numpy as np
import pytest
import torch

from harness.diffusion import Clock, CosineClock, KarrasClock, x_from_v
from harness.prompts import class_prompts
from harness.reporting.implied_weighting import Weights, implied_weights, sampler_distance, total_variation
from harness.samplers import draw_images, equal_times, sampling_step

CLOCKS = {"cosine": CosineClock(shift=1.0), "karras": KarrasClock()}


def derivatives(clock: Clock, family: str, k: int, prediction: str) -> Weights:
    """Autograd through the loop that draws images, noise and all, with a free prediction at each step."""
    predictions = torch.randn(k, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    remaining, seen = iter(predictions), []

    def denoiser(z, t, labels):
        value = next(remaining) * torch.ones_like(z)
        return value if prediction == "x" else x_from_v(z, value, clock(t))

    def step(*arrays):
        z, t, s, labels, eps = (torch.as_tensor(array) for array in arrays)
        seen.append(z.double())
        levels = t.double(), s.double()
        return sampling_step(clock, family, 0.3, denoiser, z.double(), *levels, labels, eps.double())

    given = class_prompts(10).condition
    (sample,) = draw_images(step, lambda x: x, equal_times(k), (1, 1, 1), given, 1, 1, 0, stochastic=True)
    gradient = partial(torch.autograd.grad, inputs=predictions, allow_unused=True, retain_graph=True)
    return Weights(*(gradient(array.sum())[0].numpy() for array in (sample, seen[-1])))


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("family", ["ancestral", "ddim"])
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_weights_are_the_derivatives_of_the_sampler(clock: Clock, family: str, prediction: str, k: int) -> None:
    expected = derivatives(clock, family, k, prediction)
    weights = implied_weights(clock, family, k, prediction)
    assert np.abs(weights.sample).max() > 0.1
    # The loop's times are float32; k = 5 rounds them.
    np.testing.assert_allclose(weights.sample, expected.sample, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(weights.latent, expected.latent, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_x_predictions_weigh_as_increments_of_the_signal_to_noise_ratio(clock: Clock, k: int) -> None:
    """DDPM: of SNR. DDIM: of its root. Both telescope, because z alpha / sigma^2, or z / sigma, accumulates x."""
    levels = clock(np.array(equal_times(k)))
    last = levels.alpha[-1], levels.sigma[-1]
    snr = np.exp(levels.logsnr)
    expected = {"ancestral": last[1] ** 2 / last[0] * np.diff(snr), "ddim": last[1] * np.diff(snr**0.5)}
    for family, increments in expected.items():
        weights = implied_weights(clock, family, k, "x")
        np.testing.assert_allclose(weights.latent, [*increments, 0], rtol=1e-9)
        np.testing.assert_array_equal(weights.sample, np.eye(k)[-1])


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_v_predictions_of_ddim_weigh_as_rotations(clock: Clock, k: int) -> None:
    """z_s = cos(d) z_t - sin(d) v with d the decrease of the angle arctan(sigma / alpha) (Salimans & Ho 2022)."""
    levels = clock(np.array(equal_times(k)))
    turns = -np.diff(np.arctan2(levels.sigma, levels.alpha))
    latent = [-np.sin(turn) * np.prod(np.cos(turns[i + 1 :])) for i, turn in enumerate(turns)]
    weights = implied_weights(clock, "ddim", k, "v")
    np.testing.assert_allclose(weights.latent, [*latent, 0], rtol=1e-9)
    expected = [*(levels.alpha[-1] * np.array(latent)), -levels.sigma[-1]]
    np.testing.assert_allclose(weights.sample, expected, rtol=1e-9)


def test_total_variation_of_known_shares() -> None:
    first = np.array([1.0, 1.0, 0.0])
    assert total_variation(first, -5 * first) == 0
    assert total_variation(first, np.array([0.0, 0.0, 2.0])) == 1
    assert total_variation(first, np.array([1.0, 2.0, 1.0])) == pytest.approx(0.25)


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_the_distance_of_the_samplers_is_that_of_their_weights(prediction: str) -> None:
    clock, field = CLOCKS["cosine"], {"v": "sample", "x": "latent"}[prediction]
    first, second = (getattr(derivatives(clock, family, 8, prediction), field) for family in ("ddim", "ancestral"))
    expected = np.abs(first / first.sum() - second / second.sum()).sum() / 2  # each has weights of one sign
    assert sampler_distance(clock, 8, prediction) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1
