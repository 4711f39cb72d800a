"""Consistency distillation and training: boundary, hops, schedules, and the limits in which methods are equal."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from baselines.consistency import (
    ConsistencyDistillation,
    ConsistencyTraining,
    ConsistencyTrainingOptions,
    Distillation,
    DistillationOptions,
    consistency_function,
)
from baselines.multistep_consistency import MultistepConsistency, MultistepConsistencyOptions
from harness.backends import BACKENDS, get_backend
from harness.backends.base import Adam
from harness.backends.torch import TorchOps
from harness.diffusion import CosineClock, KarrasClock, Level, addim, ddim, pseudo_huber, v_from_x, x_from_v
from harness.method import Denoiser, bind
from harness.networks.lpips import LPIPS
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from tests.conftest import SPEC, generic_weights, random_batch
from tests.oracle.mixture import MIXTURE, Mixture

CLOCK = CosineClock(logsnr_min=-6.0, logsnr_max=6.0)
GAUSSIAN = Mixture(np.array([1.0]), np.array([[0.3, -0.2]]), np.array([[0.05, 0.4]]))
PIXEL = TransformerSpec(channels=2, size=1, patch=1, width=2, depth=1, heads=1, num_classes=1)
UPDATES = 100
Model = Callable[[Tensor, Tensor, Tensor], Tensor]


def distillation(spec: TransformerSpec, **options: Any) -> ConsistencyDistillation:
    return ConsistencyDistillation(1, UPDATES, CLOCK, DistillationOptions(**options), spec)


def multistep(k: int, spec: TransformerSpec, **options: Any) -> MultistepConsistency:
    return MultistepConsistency(k, UPDATES, CLOCK, MultistepConsistencyOptions(**options), spec)


def training(updates: int = UPDATES, **options: Any) -> ConsistencyTraining:
    return ConsistencyTraining(1, updates, KarrasClock(), ConsistencyTrainingOptions(**options), PIXEL)


def doubles(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value).double() for name, value in arrays.items()}


def gaussian(params: None, z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, None]:
    """The v of the Gaussian's exact denoiser."""
    x = torch.from_numpy(GAUSSIAN.denoise(z.numpy(), CLOCK(t.numpy())))
    return v_from_x(z, x, CLOCK(t)), None


teacher = Denoiser(gaussian, None, CLOCK, num_classes=1)


def exact(segments: int, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """x_hat of the exact consistency function: the Gaussian's probability-flow map to the end of the segment of t."""
    at, end = CLOCK(t), CLOCK(((segments * t - 1e-9).floor() / segments).clamp(min=0))
    mean, variance = torch.from_numpy(GAUSSIAN.mean), torch.from_numpy(GAUSSIAN.variances[0])

    def centre_and_spread(level: Level) -> tuple[Tensor, Tensor]:
        return level.alpha[:, None] * mean, (level.alpha**2)[:, None] * variance + (level.sigma**2)[:, None]

    (centre_t, spread_t), (centre, spread) = centre_and_spread(at), centre_and_spread(end)
    f = centre + (spread / spread_t).sqrt() * (z.reshape(len(z), 2) - centre_t)
    ratio = (end.sigma / at.sigma)[:, None]
    x = (f - ratio * z.reshape(len(z), 2)) / (end.alpha[:, None] - ratio * at.alpha[:, None])
    return torch.where((t == 0)[:, None], 0.0, x).reshape(z.shape)


def loss(method: Distillation, draws: dict[str, Tensor], **nets: Model) -> tuple[float, float]:
    """The loss on Gaussian data, and the gap in f that is logged."""
    count = len(draws["t"])
    images = torch.from_numpy(GAUSSIAN.draw(np.random.default_rng(0), count).reshape(count, 2, 1, 1))
    batch = {"images": images, "condition": torch.zeros(count, dtype=torch.int64)}
    value, logs = method.loss("student", nets, batch, draws, None, TorchOps())
    return value.item(), logs["consistency_gap"].item()


@pytest.mark.parametrize("library", [np.asarray, torch.asarray, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_the_boundary_is_exact(library: Callable[..., Any]) -> None:
    """f(z, t_min) = z in the same bits whatever the network predicts, at the clock's end and at each segment's."""
    z, x = np.random.default_rng(0).standard_normal((2, 9, 1, 4, 4)).astype(np.float32)
    for clock in (CLOCK, CosineClock(shift=1.0), KarrasClock()):
        end = clock(library(np.arange(9, dtype=np.float32) / 8))
        found = consistency_function(library(z), library(100 * x), end, end)
        np.testing.assert_array_equal(np.asarray(found), z)


@pytest.mark.parametrize("k", [1, 4])
def test_the_boundary_makes_the_last_hops_target_the_hop_alone(k: int) -> None:
    method = multistep(k, PIXEL, intervals=16, target_decay=0.5)
    draws = doubles(method.draw(Noise(0), 0, 0, 400))
    last = draws["m"] == draws["end"]
    assert 0 < last.sum() < 400
    draws = {name: value[last] for name, value in draws.items()}

    def target(scale: float) -> Model:
        return lambda z, t, labels: scale * z

    found = [loss(method, draws, teacher=teacher, student=teacher, target=target(scale)) for scale in (1.0, 7.0)]
    assert found[0] == found[1]
    assert min(found[0]) > 1e-9


def test_f_is_ddims_transition() -> None:
    z, x = torch.randn(2, 50, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    for s in (t / 2, 0 * t):
        found = consistency_function(z, x, CLOCK(t), CLOCK(s))
        torch.testing.assert_close(found, ddim(z, x, CLOCK(t), CLOCK(s)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("hop", "order"), [("ddim", 1), ("heun", 2)])
@pytest.mark.parametrize("k", [1, 4])
def test_the_exact_consistency_function_is_the_fixed_point(hop: str, order: int, k: int) -> None:
    """Its gap is the solver's error in one hop, h^(order + 1), far below that of the teacher, where students start."""

    def gap(hops: int, student: Model) -> float:
        method = multistep(k, PIXEL, intervals=hops, final_intervals=hops, hop=hop, target_decay=0.5)
        draws = doubles(method.draw(Noise(0), 0, 0, 4000))
        return loss(method, draws, teacher=teacher, student=student, target=student)[1] ** 0.5

    coarse, fine = (gap(hops, partial(exact, k)) for hops in (256, 512))
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.25)
    assert fine < 0.1 * gap(512, teacher)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_segment_is_consistency_distillation(backend: str) -> None:
    """The same hop, metric, weight and grid: the same draws, loss and gradient, in the same bits."""
    spec = replace(SPEC, depth=1)
    options = {"hop": "addim", "metric": "pseudo-huber", "weight": "snr+1", "intervals": 16, "target_decay": 0.9}
    plain, one = distillation(spec, **options), multistep(1, spec, **options, final_intervals=16)
    weights = {name: generic_weights(spec, seed) for seed, name in enumerate(plain.networks())}

    def bits(method: Distillation) -> tuple[Any, ...]:
        draws = method.draw(Noise(0), 57, 0, 8)
        learner = get_backend(backend).learner(method, spec, weights, Adam(0.0, 0.99, 1e-8, 1.0))
        value, gradients = learner.gradients("student", random_batch(spec, 8), draws)
        arrays = {**draws, **gradients["student"]}
        return value, {name: array.tobytes() for name, array in arrays.items()}

    assert plain.turns == one.turns
    assert plain.networks().keys() == one.networks().keys()
    assert bits(plain) == bits(one)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_grid_of_each_segment_becomes_finer(k: int) -> None:
    method = multistep(k, PIXEL, intervals=16, final_intervals=64)
    counts = [method.intervals(step) for step in range(UPDATES)]
    assert (counts[0], counts[-1]) == (16 // k, 64 // k)
    assert counts == sorted(counts)
    for step in (0, UPDATES - 1):
        draws = method.draw(Noise(0), step, 0, 5000)
        hops = np.unique(np.stack([draws[name] for name in ("t", "m", "end")]), axis=1).astype(float)
        per_clock = counts[step] * k
        np.testing.assert_allclose(hops[0], np.arange(1, per_clock + 1) / per_clock, rtol=1e-6)
        np.testing.assert_allclose(hops[1], np.arange(per_clock) / per_clock, rtol=1e-6)
        np.testing.assert_array_equal(hops[2], np.arange(per_clock) // counts[step] / k)


def gaussian_hop(t: Level, s: Level, v: float, scale: Callable[[float], float]) -> tuple[float, float]:
    """E ||z_s||^2 / d after DDIM and after aDDIM, less that of q(z_s), for x ~ N(0, v) and a typical z_t.

    aDDIM is given the variance of x given z_t, times `scale(v SNR)`.
    """
    snr = np.exp(t.logsnr)
    z = (t.alpha**2 * v + t.sigma**2)[:, None, None, None] ** 0.5 * np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    x = (t.alpha * v / (t.alpha**2 * v + t.sigma**2))[:, None, None, None] * z
    moved = [ddim(z, x, t, s), ddim(z, addim(z, x, t, s, scale(v * snr) * v / (1 + v * snr)), t, s)]
    plain, corrected = ((z_s**2).mean() - (s.alpha**2 * v + s.sigma**2).item() for z_s in moved)
    return plain, corrected


def at(time: float) -> Level:
    return CLOCK(np.array([time]))


def test_addim_restores_the_norm_at_small_hops() -> None:
    """Given E||x - x_hat||^2 / d, and data below the noise (v SNR << 1), all but a twentieth of what DDIM loses."""
    for hop in (0.04, 0.02, 0.01):
        plain, corrected = gaussian_hop(at(0.97), at(0.97 - hop), 0.05, lambda snr: 1.0)
        assert plain < 0
        assert abs(corrected) < 0.05 * abs(plain)


@pytest.mark.parametrize("time", [0.3, 0.5, 0.9])
def test_addim_overshoots_by_the_share_of_the_data_in_the_noise(time: float) -> None:
    """By 1 + v SNR, as x_hat and eps_hat are correlated; without that factor only a third order in the hop is left."""
    v = 0.3
    hops = 0.02, 0.01
    plain, whole = np.array([gaussian_hop(at(time), at(time - hop), v, lambda snr: 1.0) for hop in hops]).T
    assert (1 - whole / plain)[-1] == pytest.approx(1 + v * math.exp(at(time).logsnr.item()), rel=0.05)
    corrected = [gaussian_hop(at(time), at(time - hop), v, lambda snr: 1 / (1 + snr))[1] for hop in hops]
    assert math.log2(plain[0] / plain[1]) == pytest.approx(2, abs=0.1)
    assert math.log2(corrected[0] / corrected[1]) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("library", [np.asarray, torch.asarray, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_addim_and_pseudo_huber_are_the_papers_formulas(library: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    z, x = rng.standard_normal((2, 20, 1, 4, 4)).astype(np.float32)
    t, variance = np.linspace(0.2, 1, 20, dtype=np.float32), rng.uniform(0, 0.2, 20).astype(np.float32)
    from_t, to_s = CLOCK(library(t)), CLOCK(library(0.8 * t))
    found = ddim(library(z), addim(library(z), library(x), from_t, to_s, library(variance)), from_t, to_s)
    (a_t, s_t), (a_s, s_s) = ((level.alpha[:, None, None, None], level.sigma[:, None, None, None])
                              for level in (CLOCK(t.astype(float)), CLOCK((0.8 * t).astype(float))))  # fmt: skip
    eps = (z - a_t * x) / s_t
    share = 16 / (eps**2).sum(axis=(1, 2, 3), keepdims=True) * variance[:, None, None, None]
    expected = a_s * x + (s_s**2 + share * (a_s - a_t * s_s / s_t) ** 2) ** 0.5 * eps
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-5)
    metric = pseudo_huber(library(z), library(x), 0.3)
    expected = (((z - x).astype(float) ** 2).sum(axis=(1, 2, 3)) + 0.09) ** 0.5 - 0.3
    np.testing.assert_allclose(np.asarray(metric), expected, rtol=1e-5)


def test_distillation_by_lpips_weighs_its_mean_as_a_sum_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 5, 1, 4, 4, generator=generator)
    method = distillation(SPEC, metric="lpips", weight="snr")
    assert method.networks()["lpips"] is LPIPS
    distances, seen = torch.rand(5, generator=generator), []

    def lpips(*arguments: Any) -> Tensor:
        seen.append(arguments)
        return distances

    t, ops = CLOCK(torch.linspace(0.1, 0.9, 5)), TorchOps()
    found = method.distance(x, target, {"lpips": lpips}, {"images": x}, t, t, ops)
    torch.testing.assert_close(found, 16 * (t.alpha / t.sigma) ** 2 * distances)
    assert seen == [(x, target, ops)]


def test_distillations_addim_has_three_quarters_of_the_squared_error() -> None:
    method, count = distillation(PIXEL, hop="addim"), 50
    draws = doubles(method.draw(Noise(0), 0, 0, count))
    z, images = torch.randn(2, count, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "condition": torch.zeros(count, dtype=torch.int64)}
    x, t, m = teacher(z, draws["t"], batch["condition"]), CLOCK(draws["t"]), CLOCK(draws["m"])
    expected = addim(z, x, t, m, 0.75 * (images - x).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(method.hop(z, {"teacher": teacher}, batch, draws), expected)


@pytest.mark.parametrize("hop", ["ddim", "heun", "addim"])
def test_the_hop_of_a_guided_teacher_is_guided_but_for_addims_variance(hop: str) -> None:
    """The variance of x given z_t is that of what the teacher predicts, not of what guidance makes of it."""
    guidance, none = 1.5, len(MIXTURE.weights)
    spec = replace(PIXEL, num_classes=none)
    options = MultistepConsistencyOptions(hop=hop)
    method = MultistepConsistency(2, UPDATES, CLOCK, options, spec, {"teacher": guidance})
    exact = MIXTURE.denoiser(CLOCK)

    def denoise(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.from_numpy(exact(z.numpy(), t.numpy(), labels.numpy()))

    def network(params: None, z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return v_from_x(z, denoise(z, t, labels), CLOCK(t)), None

    draws, labels = doubles(method.draw(Noise(0), 0, 0, 50)), torch.arange(50) % none
    z, images = torch.randn(2, 50, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, m = CLOCK(draws["t"]), CLOCK(draws["m"])

    def column(x: Tensor) -> Tensor:
        return x[:, None, None, None]

    def guided(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        conditional, unconditional = (denoise(z, t, given) for given in (labels, torch.full((50,), none)))
        return conditional, conditional + guidance * (conditional - unconditional)

    conditional, x = guided(z, draws["t"])
    assert (x - conditional).abs().max() > 0.1
    if hop == "heun":  # of y = z / alpha in rho = sigma / alpha, whose slope is (y - x) / rho
        rho, rho_m, y = *(column(level.sigma / level.alpha) for level in (t, m)), z / column(t.alpha)
        slope = (y - x) / rho
        y_m = y + (rho_m - rho) * slope
        slope_m = (y_m - guided(column(m.alpha) * y_m, draws["m"])[1]) / rho_m
        expected = y - rho * (slope + slope_m) / 2
    elif hop == "addim":
        expected = addim(z, x, t, m, 0.75 * (images - conditional).square().mean(dim=(1, 2, 3)))
    else:
        expected = x
    nets = bind(method, method.networks(), network, {"teacher": None, "student": None})
    found = method.hop(z, nets, {"images": images, "condition": labels}, draws)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("updates", [8, 100, 800, 4001])
def test_training_doubles_its_grid_between_the_papers_ends(updates: int) -> None:
    method = training(updates)
    counts = [method.intervals(step) for step in range(updates)]
    assert (counts[0], counts[-1]) == (10, 1280)
    assert list(dict.fromkeys(counts)) == [10 * 2**n for n in range(8)]
    assert [counts.count(10 * 2**n) for n in range(7)] == [updates // 8] * 7
    assert training(updates, intervals=3, final_intervals=3).intervals(updates - 1) == 3


def test_a_grid_that_would_shrink_is_refused() -> None:
    with pytest.raises(ValueError, match="final_intervals 5 is below intervals 10"):
        training(final_intervals=5)


def test_training_draws_the_log_normals_levels() -> None:
    """log sigma ~ N(-1.1, 2^2), cut at the clock's ends, up to the grid."""
    method, count = training(), 20_000
    for step in (0, UPDATES - 1):
        intervals = method.intervals(step)
        draws = method.draw(Noise(0), step, 0, count)
        np.testing.assert_allclose(draws["t"] - draws["m"], 1 / intervals, atol=1e-6)
        assert not draws["end"].any()
        edges = stats.norm(-1.1, 2.0).cdf(-KarrasClock()(np.arange(intervals + 1) / intervals).logsnr / 2)
        expected = np.diff(edges) / (edges[-1] - edges[0])
        counts = np.bincount(np.rint(draws["m"] * intervals).astype(int), minlength=intervals)
        assert np.abs(np.cumsum(counts / count - expected)).max() < 1.63 / count**0.5  # Kolmogorov & Smirnov, 1 %


def test_training_keeps_the_noise_and_weights_by_the_step_in_sigma() -> None:
    method, count, seen = training(), 30, []
    draws = doubles(method.draw(Noise(0), 50, 0, count))
    images = torch.from_numpy(GAUSSIAN.draw(np.random.default_rng(0), count).reshape(count, 2, 1, 1))
    batch = {"images": images, "condition": torch.zeros(count, dtype=torch.int64)}

    class Student:
        def __call__(self, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            seen.append(z)
            return x_from_v(z, 0.1 * z, KarrasClock()(t))

        def constant(self, ops: Any) -> "Student":
            return self

    value, _ = method.loss("student", {"student": Student()}, batch, draws, None, TorchOps())
    (sigma_t, sigma_m) = ((-KarrasClock()(draws[name]).logsnr / 2).exp() for name in ("t", "m"))
    for sigma, z in ((sigma_m, seen[0]), (sigma_t, seen[1])):
        sigma = sigma[:, None, None, None]
        torch.testing.assert_close(z * (1 + sigma**2).sqrt(), images + sigma * draws["eps"], rtol=1e-9, atol=1e-9)
    f = []
    for z, name in ((seen[1], "t"), (seen[0], "m")):
        level, end = KarrasClock()(draws[name]), KarrasClock()(draws["end"])
        f.append(ddim(z, Student()(z, draws[name], batch["condition"]), level, end))
    slope = (sigma_t - 0.002) / sigma_t * (1 + 0.002**2) ** -0.5  # of f in x_hat, at the clock's end sigma = 0.002
    square = (f[0] - f[1]).square().sum(dim=(1, 2, 3)) / slope**2
    c = 0.00054 * 2**0.5
    expected = (((square + c**2).sqrt() - c) / (sigma_t - sigma_m)).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
