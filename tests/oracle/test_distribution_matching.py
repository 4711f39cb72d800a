"""Diff-Instruct, DMD and DMD2 against Algorithm 2, divergences in closed form, the official forms, and the sampler."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from baselines.diff_instruct import DiffInstruct, DiffInstructOptions
from baselines.dmd import DMD, DMDOptions
from baselines.dmd2 import DMD2, DMD2Options, score
from harness.backends import BACKENDS, get_backend
from harness.backends.base import Adam
from harness.backends.torch import TorchOps
from harness.diffusion import Array, CosineClock, Level, diffuse
from harness.method import Draws, Method
from harness.moment_matching import AlternatingMomentMatching, MomentMatchingOptions
from harness.noise import Noise
from harness.samplers import FAMILIES, equal_times
from tests.conftest import SPEC, generic_weights, random_batch

BATCH = 16
CLOCK = CosineClock()


@dataclass(frozen=True)
class PureNoiseAtOne:
    """sigma_t = t: alpha_1 is exactly zero."""

    def __call__(self, t: Array) -> Level:
        xp = array_namespace(t)
        return Level.from_logsnr(xp.log1p(-(t**2)) - 2 * xp.log(t))


@pytest.mark.parametrize(
    ("backend", "weight"), [("torch", "flat"), ("torch", "dmd-adaptive"), *((name, "edm") for name in BACKENDS)]
)
def test_algorithm_2_from_pure_noise_has_diff_instructs_gradient(backend: str, weight: str) -> None:
    clock, adam, tiny = PureNoiseAtOne(), Adam(0.0, 0.99, 1e-12, 1.0), replace(SPEC, depth=1)
    options = MomentMatchingOptions(weight=weight, times="discrete")
    algorithm_2 = AlternatingMomentMatching(1, 100, clock, options, tiny)
    diff_instruct = DiffInstruct(1, 100, clock, DiffInstructOptions(weight=weight), tiny)
    weights = {name: generic_weights(tiny, seed) for seed, name in enumerate(algorithm_2.networks())}
    batch, draws = random_batch(tiny, BATCH), algorithm_2.draw(Noise(0), 0, 0, BATCH)
    assert (draws["t"] == 1).all()
    a, b = (
        get_backend(backend).learner(method, tiny, weights, adam).gradients("student", batch, draws)[1]["student"]
        for method in (algorithm_2, diff_instruct)
    )
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in a.values()))
    assert whole > 1e-3
    for name in a:
        assert np.linalg.norm(a[name] - b[name]) <= 1e-5 * max(np.linalg.norm(a[name]), 1e-3 * whole), name


def tensors(draws: Draws) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x).double() for name, x in draws.items()}


def torch_batch() -> dict[str, Tensor]:
    batch = random_batch(SPEC, BATCH)
    return {"images": torch.from_numpy(batch["images"]).double(), "condition": torch.from_numpy(batch["condition"])}


def column(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 1, 1)


def gaussian_denoiser(mean: Tensor, variance: float) -> Callable[..., Tensor]:
    """E[x | z_s] for x ~ N(mean, variance) in every pixel."""

    def denoise(z: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        level = CLOCK(s)
        gain = column(level.alpha * variance / (level.alpha**2 * variance + level.sigma**2))
        return mean + gain * (z - column(level.alpha) * mean)

    return denoise


def test_diff_instruct_descends_the_divergence_at_every_level() -> None:
    """Data N(m, v) and a student N(mu, v): with w = SNR, d/dmu of KL(q(z_s | student) || q(z_s | data)), exactly."""
    method = DiffInstruct(1, 100, CLOCK, DiffInstructOptions(weight="snr"), SPEC)
    batch, draws, variance = torch_batch(), tensors(method.draw(Noise(0), 0, 0, BATCH)), 0.3
    data = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 4, 4)
    mean = (0.5 * data.flip(2) + 0.1).requires_grad_()
    nets = {
        "student": lambda z, t, labels: mean + variance**0.5 * z,
        "teacher": gaussian_denoiser(data, variance),
        "auxiliary": gaussian_denoiser(mean.detach(), variance),
    }
    loss, _ = method.loss("student", nets, batch, draws, None, TorchOps())
    level = CLOCK(draws["s"])
    deviation = column((level.alpha**2 * variance + level.sigma**2).sqrt())
    student, teacher = (Normal(column(level.alpha) * m, deviation) for m in (mean, data))
    divergence = kl_divergence(student, teacher).sum(dim=(1, 2, 3)).mean()
    gradient, expected = (torch.autograd.grad(value, mean)[0] for value in (loss, divergence))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def affine(slope: float, offset: float) -> Callable[..., Any]:
    """A denoiser slope z + offset, its features z as one token for each row of pixels."""

    def denoise(z: Tensor, s: Tensor, labels: Tensor, features: bool = False) -> Any:
        x = slope * z + offset
        return (x, [z.reshape(len(z), 4, 4)]) if features else x

    return denoise


def cubes(x: Tensor, y: Tensor, ops: TorchOps | None = None) -> Tensor:
    """A metric (batch,) in the place of LPIPS."""
    return (x - y).abs().pow(3).mean(dim=(1, 2, 3))


@pytest.mark.parametrize(("name", "metric"), [("l2", functional.mse_loss), ("lpips", cubes)])
def test_dmd_is_the_papers_loss_times_the_number_of_pixels(name: str, metric: Callable[..., Tensor]) -> None:
    """Its algorithm 2: half the mean squared distance to a shifted constant; plus 0.25 of the metric's mean."""
    method = DMD(1, 100, CLOCK, DMDOptions(metric=name), SPEC)
    draws, batch = tensors(method.draw(Noise(0), 0, 0, BATCH)), torch_batch()
    noise = torch.from_numpy(Noise(3).normal("pairs", 0, 0, BATCH, (1, 4, 4))).double()
    batch |= {"pairs/noise": noise, "pairs/images": batch["images"].flip(0), "pairs/condition": batch["condition"]}
    scale = torch.linspace(0.5, 1, 16, dtype=torch.float64).reshape(1, 4, 4).requires_grad_()
    teacher, auxiliary = affine(0.4, 0.1), affine(0.7, -0.2)

    def student(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert (t == 1).all()
        return scale * z

    nets = {"student": student, "teacher": teacher, "auxiliary": auxiliary, "lpips": cubes}
    loss, _ = method.loss("student", nets, batch, draws, None, TorchOps())
    x, s = scale * draws["eps_t"], draws["s"]
    with torch.no_grad():
        z = diffuse(x, draws["eps_s"], CLOCK(s))
        real, fake = teacher(z, s, batch["condition"]), auxiliary(z, s, batch["condition"])
        direction = (fake - real) / (x - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    paper = 0.5 * functional.mse_loss(x, (x - direction).detach())
    paper = paper + 0.25 * metric(scale * batch["pairs/noise"], batch["pairs/images"]).mean()
    gradient, expected = (torch.autograd.grad(value, scale)[0] for value in (loss, 16 * paper))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def dmd2(k: int, **options: Any) -> DMD2:
    return DMD2(k, 100, CLOCK, DMD2Options(**options), SPEC)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_dmd2_simulates_its_own_sampler_and_trains_each_step_alone(k: int) -> None:
    method, labels = dmd2(k), torch.zeros(BATCH, dtype=torch.int64)
    eps = tensors(method.draw(Noise(0), 0, 0, BATCH))["eps_t"]
    slope = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    student = lambda z, t, labels: slope * z + column(t)  # noqa: E731
    found = method.simulate({"student": student}, eps, labels, TorchOps()).reshape(BATCH, k, 1, 4, 4)
    z, times = eps[:, 0], equal_times(k)
    for i, t in enumerate(times):
        t = torch.full((BATCH,), t, dtype=torch.float64)
        x = student(z, t, labels).detach()
        torch.testing.assert_close(found[:, i], x, rtol=1e-12, atol=1e-12)
        gradient = torch.autograd.grad(found[:, i].sum(), slope, retain_graph=True)[0]
        torch.testing.assert_close(gradient, z.sum(), rtol=1e-9, atol=1e-9)
        if i + 1 < k:
            s = torch.full_like(t, times[i + 1])
            z = FAMILIES[method.family(method.options)](z, x, CLOCK(t), CLOCK(s), eps[:, i + 1])


@pytest.mark.parametrize("turn", ["auxiliary", "student"])
def test_dmd2s_adversarial_terms_are_cross_entropies(turn: str) -> None:
    """What the weights add to the loss, and to its gradient in a parameter of the turn's own network."""
    k, batch = 2, torch_batch()
    draws = tensors(dmd2(k).draw(Noise(0), 0, 0, BATCH))
    offset = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def student(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * z + offset

    def head(tokens: Tensor) -> Tensor:
        return scale * tokens.sum(dim=(1, 2))

    nets = {"student": student, "teacher": affine(0.4, 0.1), "auxiliary": affine(0.7, -0.2), "head": head}
    with_term, without = (
        dmd2(k, generator_weight=weight, head_weight=weight).loss(turn, nets, batch, draws, None, TorchOps())[0]
        for weight in (1.5, 0.0)
    )

    expected = torch.zeros((), dtype=torch.float64)
    z = draws["eps_t"][:, 0]
    for i in range(k):
        s = CLOCK(draws["s"][:, i])
        x = student(z, draws["s"][:, i], batch["condition"])
        fake = head(diffuse(x, draws["eps_s"][:, i], s).reshape(BATCH, 4, 4))
        real = head(diffuse(batch["images"], draws["eps_data"][:, i], s).reshape(BATCH, 4, 4))
        entropy = functional.binary_cross_entropy_with_logits
        if turn == "student":
            expected = expected + entropy(fake, torch.ones_like(fake)) / k
        else:
            expected = expected + entropy(fake, torch.zeros_like(fake)) / k + entropy(real, torch.ones_like(real)) / k
        half = CLOCK(torch.full((BATCH,), 0.5, dtype=torch.float64))
        z = diffuse(x.detach(), draws["eps_t"][:, 1], half)
    torch.testing.assert_close(with_term - without, 1.5 * expected, rtol=1e-9, atol=1e-9)
    leaf = offset if turn == "student" else scale
    gradient, expected_gradient = (torch.autograd.grad(v, leaf)[0] for v in (with_term - without, 1.5 * expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_the_head_is_a_normalised_perceptron() -> None:
    shapes = dmd2(1).networks()["head"].shapes
    params = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in shapes.items()}
    tokens = torch.randn(BATCH, SPEC.tokens, SPEC.width, generator=torch.Generator().manual_seed(1))
    flat = functional.rms_norm(tokens.flatten(1), (SPEC.tokens * SPEC.width,), eps=1e-6)
    hidden = functional.silu(functional.linear(flat, params["hidden.weight"], params["hidden.bias"]))
    expected = functional.linear(hidden, params["out.weight"], params["out.bias"])[:, 0]
    torch.testing.assert_close(score(params, tokens), expected)


@pytest.mark.parametrize("levels", ["all", "step"])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_dmd2s_levels_are_uniform_where_they_may_be(k: int, levels: str) -> None:
    s = dmd2(k, levels=levels).draw(Noise(0), 0, 0, 5000)["s"].astype(np.float64)
    times = [*equal_times(k), 0.0]
    for i in range(k):
        low, high = (times[i + 1], times[i]) if levels == "step" else (0.0, 1.0)
        low, high = max(low, 0.02), min(high, 0.98)
        assert stats.kstest(s[:, i], "uniform", (low, high - low)).pvalue > 0.01


@pytest.mark.parametrize(("method", "span"), [(DiffInstruct, (0.0, 1.0)), (DMD, (0.02, 0.98))])
def test_the_levels_of_one_step_methods(method: type[Method], span: tuple[float, float]) -> None:
    s = method(1, 100, CLOCK, method.Options(), SPEC).draw(Noise(0), 0, 0, 5000)["s"].astype(np.float64)
    assert stats.kstest(s, "uniform", (span[0], span[1] - span[0])).pvalue > 0.01


def test_turns() -> None:
    assert [dmd2(1, auxiliary_updates=2).turn(step) for step in range(6)] == ["auxiliary", "auxiliary", "student"] * 2
    one_step = DiffInstruct(1, 100, CLOCK, DiffInstructOptions(), SPEC)
    assert [one_step.turn(step) for step in range(4)] == ["auxiliary", "student"] * 2
