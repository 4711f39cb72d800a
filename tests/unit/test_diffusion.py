"""Clocks, levels, posterior limits, parameterisations and weights against their definitions, on all three libraries."""

import jax
import numpy as np
import pytest
import torch

from harness.diffusion import (
    WEIGHTS,
    Array,
    Clock,
    CosineClock,
    KarrasClock,
    Level,
    ddim,
    diffuse,
    eps_from_x,
    guide,
    inner,
    make_clock,
    posterior,
    squared_error,
    transition_variance,
    v_from_x,
    weight,
    x_from_eps,
    x_from_v,
)

CLOCKS = {
    "cosine": CosineClock(),
    "shifted": CosineClock(shift=-4.0),
    "interpolated": CosineClock(shift=-4.0, shift_high=1.0),
    "karras": KarrasClock(),
    "karras-shifted": KarrasClock(shift=-2.0),
}
TIMES = np.linspace(0, 1, 101)


def level(logsnr: Array) -> Level:
    return Level.from_logsnr(np.asarray(logsnr, np.float64))


def images(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 5, 1, 2, 2))


LEVELS = level(np.linspace(-10, 10, 5))


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_clocks_fall_and_preserve_variance(clock: Clock) -> None:
    at = clock(TIMES.astype(np.float32))
    assert all(values.dtype == np.float32 for values in at)
    assert np.all(np.diff(at.logsnr) < 0)
    np.testing.assert_allclose(at.alpha**2 + at.sigma**2, 1, atol=1e-6)
    np.testing.assert_allclose(2 * np.log(at.alpha / at.sigma), at.logsnr, rtol=2e-6, atol=2e-6)


def test_variance_is_preserved_over_the_whole_float32_range() -> None:
    at = Level.from_logsnr(np.append(np.linspace(-80, 80, 1001), [-np.inf, np.inf]).astype(np.float32))
    np.testing.assert_allclose(at.alpha**2 + at.sigma**2, 1, atol=1e-6)
    assert (at.alpha[-2:].tolist(), at.sigma[-2:].tolist()) == ([0, 1], [1, 0])


def test_cosine_is_linear_in_the_angle_between_its_ends() -> None:
    at = CosineClock(logsnr_min=-8, logsnr_max=12)(TIMES)
    assert at.logsnr[[0, -1]] == pytest.approx([12, -8])
    angle = np.arctan2(at.sigma, at.alpha)
    np.testing.assert_allclose(angle, angle[0] + TIMES * (angle[-1] - angle[0]), rtol=1e-12)


def test_cosine_with_far_ends_is_the_closed_form() -> None:
    at = CosineClock(logsnr_min=-40, logsnr_max=40)(TIMES)
    np.testing.assert_allclose(at.alpha, np.cos(np.pi / 2 * TIMES), atol=1e-8)
    np.testing.assert_allclose(at.sigma, np.sin(np.pi / 2 * TIMES), atol=1e-8)


@pytest.mark.parametrize("name", ["cosine", "karras"])
def test_a_shift_adds_to_the_logsnr(name: str) -> None:
    shift = 2 * np.log(64 / 512)
    moved, plain = make_clock(name, shift=shift)(TIMES), make_clock(name)(TIMES)
    np.testing.assert_allclose(moved.logsnr, plain.logsnr + shift, rtol=1e-12, atol=1e-12)


def test_interpolated_shift_mixes_two_shifted_clocks() -> None:
    low, high = CosineClock(shift=-4.0)(TIMES), CosineClock(shift=1.0)(TIMES)
    mixed = CosineClock(shift=-4.0, shift_high=1.0)(TIMES)
    np.testing.assert_allclose(mixed.logsnr, TIMES * low.logsnr + (1 - TIMES) * high.logsnr, atol=1e-12)
    assert mixed.logsnr[[0, -1]] == pytest.approx([11, -14])


@pytest.mark.parametrize(("rho", "low", "high"), [(7.0, 0.002, 80.0), (3.0, 0.01, 50.0)])
def test_karras_is_edms_sigma_ladder(rho: float, low: float, high: float) -> None:
    steps = 18
    i = np.arange(steps)
    sigmas = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    at = KarrasClock(low, high, rho)(1 - i / (steps - 1))
    np.testing.assert_allclose(at.sigma / at.alpha, sigmas, rtol=1e-10)


def test_conversions_are_those_of_the_definitions() -> None:
    x, eps = images(0)[0], images(1)[0]
    alpha, sigma = LEVELS.alpha[:, None, None, None], LEVELS.sigma[:, None, None, None]
    z, v = alpha * x + sigma * eps, alpha * eps - sigma * x
    np.testing.assert_array_equal(diffuse(x, eps, LEVELS), z)
    np.testing.assert_allclose(eps_from_x(z, x, LEVELS), eps, atol=1e-10)
    np.testing.assert_allclose(x_from_eps(z, eps, LEVELS), x, atol=1e-10)
    np.testing.assert_allclose(v_from_x(z, x, LEVELS), v, atol=1e-10)
    np.testing.assert_allclose(x_from_v(z, v, LEVELS), x, atol=1e-10)


def test_conversions_are_mutual_inverses_for_any_prediction() -> None:
    """Also where z is not made of the x, eps or v that is predicted."""
    z, prediction = images(2)[0], images(3)[0]
    for forward, backward in [(eps_from_x, x_from_eps), (v_from_x, x_from_v)]:
        np.testing.assert_allclose(forward(z, backward(z, prediction, LEVELS), LEVELS), prediction, atol=1e-9)
        np.testing.assert_allclose(backward(z, forward(z, prediction, LEVELS), LEVELS), prediction, atol=1e-9)


@pytest.mark.parametrize("upper_bound", [0.0, 0.5])
def test_the_last_step_lands_on_x_without_noise(upper_bound: float) -> None:
    z, x = images(4)[0], images(5)[0]
    clean = level(np.full(5, np.inf))
    mean, variance = posterior(z, x, LEVELS, clean, upper_bound)
    np.testing.assert_allclose(mean, x, rtol=1e-14)
    np.testing.assert_array_equal(variance, np.zeros(5))
    np.testing.assert_allclose(ddim(z, x, LEVELS, clean), x, rtol=1e-14)


@pytest.mark.parametrize("upper_bound", [0.0, 0.5, 1.0])
def test_an_empty_step_stays_and_a_small_one_nearly(upper_bound: float) -> None:
    z, x = images(4)[0].astype(np.float32), images(5)[0].astype(np.float32)
    t = Level.from_logsnr(np.linspace(-10, 10, 5, dtype=np.float32))
    mean, variance = posterior(z, x, t, t, upper_bound)
    np.testing.assert_array_equal(mean, z)
    np.testing.assert_array_equal(variance, np.zeros(5))
    np.testing.assert_allclose(ddim(z, x, t, t), z, rtol=1e-4, atol=1e-5)
    delta = np.float32(2**-14)  # exact in float32 beside the log-SNRs above
    near = Level.from_logsnr(t.logsnr + delta)
    np.testing.assert_allclose(transition_variance(t, near), delta * t.sigma**2, rtol=1e-4)


def test_the_variance_bounds_are_the_published_ones_and_half_way_their_geometric_mean() -> None:
    t, s = level([-8.0, -1.0, 3.0]), level([-7.0, 2.0, 9.0])
    x = np.zeros((3, 1))
    step = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    lower, half, upper = (posterior(x, x, t, s, bound).variance for bound in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(lower, step * s.sigma**2 / t.sigma**2, rtol=1e-9)
    np.testing.assert_allclose(upper, step, rtol=1e-9)
    np.testing.assert_allclose(half, np.sqrt(lower * upper), rtol=1e-12)


def test_ddim_keeps_the_implied_noise() -> None:
    z, x = images(6)[0], images(7)[0]
    s = level(np.linspace(-9, 12, 5))
    moved = ddim(z, x, LEVELS, s)
    np.testing.assert_allclose(eps_from_x(moved, x, s), eps_from_x(z, x, LEVELS), rtol=1e-9, atol=1e-9)


def test_weights_against_hand_formulas() -> None:
    x, prediction = images(8)[0], images(9)[0]
    alpha, sigma = LEVELS.alpha, LEVELS.sigma
    edm_sigma, sigma_data = sigma / alpha, 0.5  # z / alpha = x + edm_sigma eps: the error in x is EDM's own
    expected = {
        "flat": np.ones(5),
        "snr": alpha**2 / sigma**2,
        "snr+1": 1 / sigma**2,
        "truncated-snr": np.maximum(alpha**2 / sigma**2, 1),
        "edm": (edm_sigma**2 + sigma_data**2) / (edm_sigma * sigma_data) ** 2,
        "dmd-adaptive": [4 / sum(abs(a - b) for a, b in zip(*pair, strict=True))
                         for pair in zip(x.reshape(5, 4), prediction.reshape(5, 4), strict=True)],
    }  # fmt: skip
    assert expected.keys() == WEIGHTS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(weight(name, LEVELS, x, prediction), values, rtol=1e-9, err_msg=name)
    assert weight("truncated-snr", LEVELS, x, prediction)[:2].tolist() == [1, 1]


def test_snr_plus_one_makes_the_x_error_the_v_error() -> None:
    z, x, prediction = (images(seed)[0] for seed in (10, 11, 12))
    in_v = squared_error(v_from_x(z, x, LEVELS), v_from_x(z, prediction, LEVELS))
    in_x = weight("snr+1", LEVELS, x, prediction) * squared_error(x, prediction)
    np.testing.assert_allclose(in_x, in_v, rtol=1e-9)


def test_sums_over_all_but_the_batch() -> None:
    a, b = images(13)[0], images(14)[0]
    np.testing.assert_allclose(inner(a, b), np.einsum("bchw,bchw->b", a, b))
    np.testing.assert_allclose(squared_error(a, b), np.linalg.norm((a - b).reshape(5, -1), axis=1) ** 2)


def everything(z: Array, x: Array, t: Array, s: Array) -> dict[str, Array]:
    """Every public function's output, by name."""
    out: dict[str, Array] = {}
    for name, clock in CLOCKS.items():
        out |= {f"{name}.{field}": value for field, value in clock(t)._asdict().items()}
    at, to = CosineClock()(t), CosineClock()(s)
    for bound in (0.0, 0.5, 1.0):
        out[f"mean-{bound}"], out[f"variance-{bound}"] = posterior(z, x, at, to, bound)
    out |= {f"weight.{name}": weight(name, at, x, z) for name in WEIGHTS}
    conversions = (eps_from_x, x_from_eps, v_from_x, x_from_v)
    out |= {function.__name__: function(z, x, at) for function in conversions}
    return out | {
        "diffuse": diffuse(x, z, at),
        "ddim": ddim(z, x, at, to),
        "guide": guide(z, x, 0.3),
        "inner": inner(z, x),
        "squared_error": squared_error(z, x),
    }


def test_numpy_torch_and_jax_give_the_same_numbers() -> None:
    z, x = (images(seed)[0].astype(np.float32) for seed in (15, 16))
    arrays = z, x, np.linspace(0.3, 1, 5, dtype=np.float32), np.linspace(0.1, 0.8, 5, dtype=np.float32)
    exact = everything(*(a.astype(np.float64) for a in arrays))
    numpy = everything(*arrays)
    with_torch = {k: v.numpy() for k, v in everything(*map(torch.from_numpy, arrays)).items()}
    with_jax = {k: np.asarray(v) for k, v in jax.jit(everything)(*arrays).items()}
    for name, values in exact.items():
        for found in (numpy[name], with_torch[name], with_jax[name]):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, values, rtol=2e-5, atol=2e-5 * np.abs(values).max(), err_msg=name)
